"""The product from end to end: a real process, the shipped weights, full-size photos of known classes."""

import io
import signal
import socket
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.chaos.service import running as running_anyhow
from tests.e2e.conftest import NAM, Process, start
from tests.fakes import until

CATS = {"n02123045", "n02123394", "n02124075"}  # tabby, Persian cat, Egyptian cat
ESPRESSO = "n07920052"
JPEG = {"content-type": "image/jpeg"}


def ask(serving: Process, path: str, photo: Path, **options) -> httpx2.Response:
    return httpx2.post(serving.url + path, content=photo.read_bytes(), headers=JPEG, timeout=60, **options)


def best(answer: dict) -> str:
    return answer["predictions"][0]["class_id"]


def test_a_cat_is_among_the_labels_of_a_cat_and_an_espresso_is_one(serving: Process, photos: dict[str, Path]) -> None:
    cat, espresso = (ask(serving, "/predict", photos[name]).json() for name in ("cat", "espresso"))
    assert CATS & {prediction["class_id"] for prediction in cat["predictions"]}
    assert cat["image"] == {"format": "JPEG", "width": 451, "height": 300}
    assert best(espresso) == ESPRESSO
    assert espresso["predictions"][0]["probability"] > 0.5
    assert espresso["image"] == {"format": "JPEG", "width": 600, "height": 400}


def test_the_attention_is_alive_and_adds_up(serving: Process, photos: dict[str, Path]) -> None:
    answer = ask(serving, "/attention?maps=all&effects=true", photos["cat"]).json()
    assert best(answer) == best(ask(serving, "/predict", photos["cat"]).json())
    assert [block["name"] for block in answer["blocks"]] == [f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1)]
    for block in answer["blocks"]:
        maps = np.array(block["channel_maps"])
        assert sum(block["weights"]) == pytest.approx(1, abs=1e-4)
        assert np.allclose(np.tensordot(block["weights"], maps, 1), block["map"], atol=1e-4)
        assert maps.std() == pytest.approx(block["gates"]["std"], abs=1e-4)
        assert block["gates"]["std"] > 0.02  # the faithful module's stay below 0.004
        assert isinstance(block["effect"], float)
    assert max(abs(block["effect"]) for block in answer["blocks"]) > 0.05


def test_an_attention_comes_whole_in_every_form(serving: Process, photos: dict[str, Path]) -> None:
    query = "/attention?block=layer3.1&block=layer4.1&top_channels=3&effects=true&channel_effects=true&method=class"
    told = ask(serving, query, photos["cat"]).json()
    with np.load(io.BytesIO(ask(serving, query + "&format=npz", photos["cat"]).content), allow_pickle=False) as arrays:
        for block in told["blocks"]:
            effects = [channel["effect"] for channel in block["top_channels"]]
            assert np.allclose(arrays[f"{block['name']}/top_channels.effect"], effects, atol=1e-4)
            assert 0 < max(map(abs, effects)) < 1
            assert arrays[f"{block['name']}/channel_maps"].shape[0] == block["channels"]
        assert np.allclose(arrays["layer4.1/map_class"], told["blocks"][1]["map_class"], atol=0.01)
    with Image.open(io.BytesIO(ask(serving, query + "&format=png", photos["cat"]).content)) as figure:
        assert figure.width > 800


def test_concurrent_callers_get_their_own_answers_and_share_batches(serving: Process, photos: dict[str, Path]) -> None:
    alone = {name: best(ask(serving, "/predict", photo).json()) for name, photo in photos.items()}
    names = ["cat", "espresso"] * 24
    sizes: list[int] = []

    def several() -> bool:
        """Over kept connections: to open one takes a caller as long as several answers."""
        with httpx2.Client(base_url=serving.url, headers=JPEG, timeout=60) as client, ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda name: client.post("/predict", content=photos[name].read_bytes()), names))
        assert [best(answer.json()) for answer in answers] == [alone[name] for name in names]
        sizes.extend(int(answer.headers["x-batch-size"]) for answer in answers)
        return max(sizes) > 1

    until(several)


def figures(serving: Process) -> dict[str, float]:
    lines = httpx2.get(serving.url + "/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_the_metrics_show_batches(serving: Process, photos: dict[str, Path]) -> None:
    files = [("file", path.read_bytes()) for path in photos.values()] * 8
    assert httpx2.post(serving.url + "/predict/batch", files=files, timeout=60).status_code == 200
    told = figures(serving)
    assert told["nam_batch_size_sum"] > told["nam_batch_size_count"] > 0
    until(lambda: figures(serving)["nam_requests_in_flight"] == 0)


def test_the_card_tells_accuracy_and_hash(serving: Process) -> None:
    card = httpx2.get(serving.url + "/model", timeout=60).json()
    assert card["name"] == "resnet18-nam-tiny-imagenet"
    assert card["config"]["weighting"] == "unit-mean"
    assert card["metrics"]["val"]["top1"] >= 40  # what the card must say at the least
    assert card["metrics"]["val"]["images"] == 10_000
    assert len(card["sha256"]) == 64


def test_sigterm_answers_what_was_accepted_and_exits_0(tmp_path: Path, photos: dict[str, Path]) -> None:
    running, calls = start(tmp_path), list[Future[int]]()

    def call(i: int) -> int:
        if i == 30:
            wait(calls[:20])
            running.process.send_signal(signal.SIGTERM)
        try:
            return ask(running, "/predict", photos["cat"]).status_code
        except httpx2.TransportError:
            return 0  # the port is closed, or its last connections: the log below says that nothing was accepted

    with ThreadPoolExecutor(8) as pool:
        for i in range(60):
            calls.append(pool.submit(call, i))
    statuses = [one.result() for one in calls]
    assert running.process.wait(60) == 0, running.log.read_text()
    assert statuses[:20] == [200] * 20
    assert set(statuses) <= {200, 503, 0}
    accepted = running.log.read_text().count("POST /predict ")
    assert accepted == len([status for status in statuses if status])


def test_it_serves_and_ends_well_without_standard_files(tmp_path: Path) -> None:
    with running_anyhow(tmp_path, ("sh", "-c", f"exec {NAM} serve <&- >&- 2>&-")) as service:
        assert service.end(60) == 0


def test_a_start_on_a_port_that_is_taken_fails_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([NAM, "serve", "--port", port], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "address already in use" in done.stderr
    assert done.stderr.splitlines()[-1] == f"nam: no service on 127.0.0.1:{port}; the lines above say why"


def test_a_start_without_weights_fails_in_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [NAM, "serve", "--port", "0", "--weights", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("nam: ")
    assert last.endswith("neither a weights file nor the name of shipped weights")

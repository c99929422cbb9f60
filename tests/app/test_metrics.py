"""What is counted, and by which names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import Metrics
from tests.fakes import CARD, Service, picture, service, until

PNG = {"content-type": "image/png"}


def ask(serving: Service, path: str = "/predict", image: bytes | None = None) -> int:
    body = picture() if image is None else image
    return serving.client.post(path, content=body, headers=PNG).status_code


@pytest.fixture
def busy() -> Iterator[Service]:
    """Everything has been asked for once."""
    with service() as serving:
        assert [ask(serving), ask(serving, "/attention"), ask(serving, image=b"none")] == [200, 200, 415]
        yield serving


def test_names_and_units_are_the_conventions(busy: Service) -> None:
    families = list(text_string_to_metric_families(busy.client.get("/metrics").text))
    for family in families:
        assert re.fullmatch(r"(nam|process)_[a-z_]*[a-z]", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert not re.search(r"_(ms|milliseconds|kb|mb|percent|created)\b", sample.name)
    assert len({family.name for family in families}) == len(families) > 20


def test_labels_are_few_whatever_is_asked(busy: Service) -> None:
    before = busy.client.get("/metrics").text.count("\n")
    for number in range(30):
        busy.client.get(f"/nowhere/{number}")
        busy.client.post(f"/v2/models/model-{number}/infer", content=b"")
        ask(busy, f"/predict?top_k={number + 100}")
    assert busy.client.get("/metrics").text.count("\n") < before + 120  # routes and statuses that are new, once


def test_bytes_of_bodies_are_counted_both_ways(busy: Service) -> None:
    sent = len(busy.client.get("/model").content)
    assert busy.metric("nam_sent_bytes_total", route="/model") == sent
    assert busy.metric("nam_received_bytes_total", route="/model") == 0
    assert busy.metric("nam_received_bytes_total", route="/attention") == len(picture())
    assert busy.metric("nam_received_bytes_total", route="/predict") == len(picture()) + len(b"none")


def test_a_head_receives_no_bytes(serving: Service) -> None:
    serving.client.head("/model")
    assert serving.metric("nam_requests_total", route="/model", status="200") == 1
    assert serving.metric("nam_sent_bytes_total", route="/model") == 0


def test_every_image_waits_for_itself(busy: Service) -> None:
    files = [("file", picture(level)) for level in (25, 75)] + [("file", b"none")]
    busy.client.post("/predict/batch", files=files)
    assert busy.metric("nam_image_queue_seconds_count") == busy.metric("nam_decode_seconds_count") == 4


def test_build_info_says_what_is_served(serving: Service) -> None:
    (line,) = re.findall(r"^nam_build_info\{(.*)\} 1\.0$", serving.client.get("/metrics").text, re.M)
    told = dict(re.findall(r'(\w+)="([^"]*)"', line))
    assert re.fullmatch(r"\d+\.\d+\.\d+", told.pop("version"))
    facts = {"model": "fake", "weights_sha256": CARD.sha256, "device": "none", "dtype": "float32"}
    assert told == facts | {"engine": "fake", "engine_version": ""}


def test_ready_turns_when_it_drains(serving: Service) -> None:
    assert serving.metric("nam_ready") == 1
    serving.load.draining = True
    assert serving.metric("nam_ready") == 0


def test_limits_stand_beside_what_they_limit() -> None:
    with service(max_queue=7, max_requests=5) as serving:
        assert (serving.metric("nam_queue_limit"), serving.metric("nam_requests_limit")) == (7, 5)


def test_a_cpu_has_no_memory_of_a_device(busy: Service) -> None:
    assert "nam_device_memory_bytes{" not in busy.client.get("/metrics").text


def test_a_device_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fakes import FakeEngine

    told = {"allocated": 300, "reserved": 500, "free": 1000}
    monkeypatch.setattr(FakeEngine, "memory", lambda self: told)
    with service() as serving:
        until(lambda: serving.metric("nam_device_memory_bytes", kind="free") == 1000)
        assert {kind: serving.metric("nam_device_memory_bytes", kind=kind) for kind in told} == told


def test_gates_are_those_of_who_asks_for_them(busy: Service) -> None:
    assert busy.metric("nam_gate_spread_count", block="layer1.0") == 1
    ask(busy, "/attention?block=layer2.0")
    ask(busy)
    assert [busy.metric("nam_gate_spread_count", block=block.name) for block in CARD.blocks] == [1, 2]
    # the fake's gates: as many steps from 0.4 to 0.6 as there are, 64 and 16
    assert busy.metric("nam_gate_spread_sum", block="layer1.0") == pytest.approx(0.0586, abs=1e-3)


def test_one_in_so_many_images_is_looked_at_besides() -> None:
    with service(gate_sample=3) as serving:
        plain = [serving.client.post("/predict", content=picture(), headers=PNG).json() for _ in range(7)]
        assert [serving.metric("nam_gate_spread_count", block=block.name) for block in CARD.blocks] == [2, 2]
    assert plain == [plain[0]] * 7


def test_a_service_that_cannot_look_at_processes_says_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.board import Load

    monkeypatch.setattr("app.metrics.usage", lambda root: None)
    assert b"process_" not in Metrics(Load()).render()


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_what_the_readme_says_is_counted_is_counted(busy: Service, name: str) -> None:
    declared = set(re.findall(r"^# TYPE (\S+)", busy.client.get("/metrics").text, re.M))
    told = re.findall(r"`((?:nam|process)_\w+)`", (Path(__file__).parents[2] / name).read_text(encoding="utf-8"))
    assert len(told) > 20
    assert set(told) <= declared

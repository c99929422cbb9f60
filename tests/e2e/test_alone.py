"""Real processes of the service ask nobody for anything, unpickle nothing, and log no key and nothing of an image: one
life from the export of the network to the drain, at debug level, in a network that is a loopback alone."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.alone import AUDIT, HIDDEN, photo, requests

ROOT = Path(__file__).parents[2]
# As root, else as a user who is root in a namespace of its own.
WAYS = (["unshare", "-n"], ["unshare", "-rn"])
UNSHARE = next((way for way in WAYS if not subprocess.run([*way, "true"], capture_output=True).returncode), [])


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two workers"])
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """What it told, its log, its folder. The cache is empty at first: what exports the network is alone too."""
    folder = tmp_path_factory.getbasetemp() / f"alone-{request.param}"
    folder.mkdir()
    command = [*UNSHARE, sys.executable, "-m", "tests.e2e.alone", str(folder), request.param]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    log = (folder / "log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stderr + log
    return json.loads((folder / "told.json").read_text()), log, folder


Life = tuple[dict[str, Any], str, Path]


def test_it_lived_its_whole_life(life: Life) -> None:
    told, log, _ = life
    names = list(requests())
    good = names[: names.index("no key")]
    assert {name: told["answers"][name] for name in good} == dict.fromkeys(good, 200)
    assert all(400 <= told["answers"][name] < 500 for name in names[len(good) :])
    assert told["malformed"].startswith("HTTP/1.1 4")
    assert told["code"] == 0
    assert "is not a setting" not in log  # so it is the level that it was told
    assert "POST /predict 401" in log


def test_nobody_asks_for_a_name_or_another_machine_and_nothing_is_unpickled(life: Life) -> None:
    _, _, folder = life
    assert not (folder / "audit").exists(), (folder / "audit").read_text()


def test_the_audit_sees_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    acts = ["socket.create_connection(('192.0.2.1', 80))", "socket.getaddrinfo('example.org', 80)"]
    acts += ["pickle.loads(pickle.dumps(pickle.Pickler))", "socket.socket(2, 2).sendto(b'', ('192.0.2.1', 53))"]
    for act in acts:
        told = {"PYTHONPATH": str(tmp_path), "AUDIT": str(tmp_path / "audit")}
        done = subprocess.run(
            [sys.executable, "-c", f"import pickle, socket; {act}"], env=told, capture_output=True, text=True
        )
        assert "PermissionError" in done.stderr
    assert len((tmp_path / "audit").read_text().splitlines()) == len(acts)


@pytest.mark.skipif(not UNSHARE, reason="no network namespace can be made here: only what Python asks for is seen")
def test_the_kernel_was_asked_for_no_way_out(life: Life) -> None:
    """Also what is no Python: uvloop, OpenVINO, torch."""
    told, _, _ = life
    assert told["alone"]
    assert (told["lost"], told["counted"]) == (0, 1)


def test_the_log_has_no_key_and_nothing_of_an_image(life: Life) -> None:
    _, log, _ = life
    told = [line for line in log.splitlines() for hidden in HIDDEN if hidden in line]
    assert told == []
    assert "\x1b" not in log
    for form in ("JPEG", "PNG"):
        image = photo(form)
        assert base64.b64encode(image[:30]).decode() not in log
        assert repr(image[:8])[2:-1] not in log


def test_what_decodes_images_is_not_told_where_the_keys_are(life: Life) -> None:
    told, _, _ = life
    assert any(name.startswith("app.lane_process") for name in told["keys"])
    assert [name for name, keys in told["keys"].items() if keys and not name.startswith("app.workers http")] == []

"""The supervisor's promises that no real service can be brought to on purpose; others: tests/e2e/test_workers.py."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import workers
from app.server import FAILED
from app.settings import Settings


def test_a_process_that_is_started_while_the_signal_comes_is_ended_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor = workers._Supervisor(Settings(workers=2), tmp_path, 0)

    def started(part: str, row: int) -> subprocess.Popen[bytes]:
        supervisor._stop(signal.SIGTERM, None)  # between the process's start and its place in the list
        return subprocess.Popen(["sleep", "60"])

    monkeypatch.setattr(supervisor, "_start", started)
    supervisor._start_http(1)
    assert supervisor._http[1].wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(("ends", "code"), [(FAILED, FAILED), (3, 1), (-9, 1)])
def test_the_engines_own_failure_is_the_services(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: int, code: int
) -> None:
    """An engine that ends once the processes before it are started."""
    (tmp_path / "engine").touch()
    engine = f"import os, sys, time; time.sleep(0.3); sys.exit({ends}) if {ends} > 0 else os.kill(os.getpid(), 9)"
    commands = {"engine": [sys.executable, "-c", engine], "http": ["sleep", "60"]}
    supervisor = workers._Supervisor(Settings(workers=2), tmp_path, 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor, "_start", lambda part, _: subprocess.Popen(commands[part]))
    assert supervisor.run() == code

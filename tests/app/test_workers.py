"""The supervisor's promises that no real service can be brought to on purpose; others: tests/e2e/test_workers.py."""

import signal
import subprocess
from pathlib import Path

import pytest

from app import workers
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
    assert supervisor._http[1].wait(5) == -signal.SIGTERM

"""One real process with the shipped weights, and what it costs."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.bench_command import ProcessTree
from tests.e2e.conftest import Process, start


@dataclass(frozen=True)
class Target:
    """A service under attack."""

    serving: Process

    @property
    def port(self) -> int:
        return urlsplit(self.serving.url).port or 0

    @property
    def pids(self) -> list[int]:
        """Of the process and its lanes."""
        return ProcessTree(self.serving.process.pid).pids()

    def forget_peaks(self) -> None:
        """From here on :meth:`peak_kb` counts anew (proc_pid_clear_refs(5))."""
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_kb(self) -> int:
        """The most memory that each process ever had resident, added up."""
        return sum(_status_kb(pid, "VmHWM") for pid in self.pids)

    def resident_kb(self) -> int:
        return sum(_status_kb(pid, "VmRSS") for pid in self.pids)


def _status_kb(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(name + ":")[2].split()[0])


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    running = start(tmp_path_factory.mktemp("hostile"), NAM_LOG_LEVEL="warning")
    yield Target(running)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()

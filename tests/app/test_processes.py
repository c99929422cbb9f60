"""What processes use, as /proc tells it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from app.processes import descent, stats, usage
from tests.fakes import until

BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_a_process_is_itself_and_its_children() -> None:
    """Of one that does nothing else meanwhile, as this one may."""
    with subprocess.Popen(["sh", "-c", "read line; sleep 60; true"], stdin=subprocess.PIPE) as parent:
        until(lambda: stats()[parent.pid][0] == "S")
        before = usage(parent.pid)
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        until(lambda: usage(parent.pid).processes == 2)
        with_child = usage(parent.pid)
        for pid in descent(parent.pid, stats()):
            os.kill(pid, signal.SIGKILL)
    assert before.processes == 1
    assert with_child.resident_bytes > before.resident_bytes > 1e5
    assert with_child.open_fds >= 3


def test_the_time_of_a_child_that_ended_is_not_lost() -> None:
    before = usage(os.getpid()).cpu_s
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert usage(os.getpid()).cpu_s >= before + 0.25


def test_it_began_when_it_began() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        began = usage(child.pid).started_at
        child.kill()
    assert began == pytest.approx(time.time(), abs=5)


def test_nothing_is_told_of_who_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    assert usage(child.pid) is None

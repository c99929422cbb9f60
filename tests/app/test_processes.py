"""What processes use, as /proc tells it."""

import os
import subprocess
import sys
import time

import pytest

from app.processes import usage

BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_a_process_is_itself_and_its_children() -> None:
    before = usage(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as child:
        with_child = usage(os.getpid())
        child.kill()
    assert with_child.processes == before.processes + 1
    assert with_child.resident_bytes > before.resident_bytes > 1e6
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

"""The CPUs of a container are its own, not the machine's."""

import os
from pathlib import Path

import pytest

from app import cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 CPUs, and where it tells of control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    (tmp_path / "cpu").mkdir()
    return tmp_path


def test_without_a_quota_all_that_the_process_is_bound_to(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.usable_cores() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert cores.usable_cores() == 2


@pytest.mark.parametrize(
    ("told", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 64), ("9900000 100000", 64)],
)
def test_no_more_than_the_quota(groups: Path, told: str, expected: int) -> None:
    (groups / "cpu.max").write_text(told + "\n")
    assert cores.usable_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", 64)])
def test_the_quota_as_older_kernels_tell_it(groups: Path, quota: str, expected: int) -> None:
    (groups / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.usable_cores() == expected

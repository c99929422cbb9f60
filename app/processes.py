"""What the processes of a service use, as Linux's ``/proc`` tells it."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_S = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# The fields of ``stat`` after the name in brackets, of which the first is the third in proc(5).
_PARENT, _CPU, _START, _RSS = 1, slice(11, 15), 19, 21


@dataclass(frozen=True)
class Usage:
    """Of a process and its descendants. ``cpu_s``: of those too that ended and were waited for, so that it never falls;
    ``resident_bytes``: a page that several share counts for each; ``started_at``: of the first, since the epoch."""

    processes: int
    cpu_s: float
    resident_bytes: int
    open_fds: int
    started_at: float


def usage(root: int) -> Usage | None:
    """None where ``/proc`` does not tell."""
    family = descent(root, stats())
    if not family or (booted_at := _booted_at()) is None:
        return None
    return Usage(
        processes=len(family),
        cpu_s=cpu_s(family),
        resident_bytes=sum(int(fields[_RSS]) for fields in family.values()) * _PAGE,
        open_fds=sum(map(_open_fds, family)),
        started_at=booted_at + int(family[root][_START]) / _TICKS_S,
    )


def stats() -> dict[int, list[str]]:
    """By process what its ``stat`` has after its name."""
    return {int(path.name): fields for path in _PROC.glob("[0-9]*") if (fields := _stat(path))}


def cpu_s(family: dict[int, list[str]]) -> float:
    """User and system time so far, with that of children which ended and were waited for."""
    return sum(sum(map(int, fields[_CPU])) for fields in family.values()) / _TICKS_S


def descent(root: int, every: dict[int, list[str]]) -> dict[int, list[str]]:
    """Of every process the root and its descendants; nothing where the root is not there."""
    found, last = dict[int, list[str]](), {root} & every.keys()
    while last:
        found |= {pid: every[pid] for pid in last}
        last = {pid for pid, fields in every.items() if int(fields[_PARENT]) in last}
    return found


def _stat(path: Path) -> list[str]:
    """Nothing of a process that has ended meanwhile."""
    with suppress(OSError):
        return (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return []


def _open_fds(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(_PROC / str(pid) / "fd"))
    return 0


def _booted_at() -> float | None:
    with suppress(OSError):
        lines = (_PROC / "stat").read_text(encoding="utf-8").splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), None)
    return None

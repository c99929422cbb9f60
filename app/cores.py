"""How many CPUs this process may use. ``os.cpu_count`` tells how many the machine has: in a container that may have two
of 64, a lane for each would take 64 times the memory, and wait for its share most of the time."""

import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Those that it is bound to, and no more than its control group's quota, a part of one counted whole."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota(_CGROUPS, bound)))


def _quota(groups: Path, most: int) -> int:
    """As a container sees its own group: version 2 has one file, ``QUOTA PERIOD`` or ``max PERIOD``, version 1 two;
    ``most`` where nothing is said."""
    with suppress(OSError, ValueError):
        told = (groups / "cpu.max").read_text().split()
        return -(-int(told[0]) // int(told[1]))
    with suppress(OSError, ValueError):
        told = [(groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
        return -(-int(told[0]) // int(told[1])) if int(told[0]) > 0 else most
    return most

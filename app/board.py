"""What admission counts: requests under way, bytes of bodies held, how long an image takes. Of one process, or, where
several answer for one service, of all of them, in memory that they share.

Each process writes its own row and reads the sum; a row is written by one process alone, so nothing is locked.
"""

import mmap
from collections.abc import Callable
from pathlib import Path

_ROW = 4
_REQUESTS, _BYTES, _IMAGE_NS, _DEPTH = range(_ROW)


class Load:
    """One process's row. ``draining``: whether this process refuses new work.

    ``path``: a file of as many rows as there are processes, made by :func:`make_board`; none: this process is alone.
    """

    def __init__(self, path: Path | None = None, row: int = 0) -> None:
        self.draining = False
        self.read_depth: Callable[[], int] | None = None  # where the queue itself is
        self._map = mmap.mmap(-1, 8 * _ROW) if path is None else _opened(path)
        self._cells = memoryview(self._map).cast("q")
        self._start = _ROW * row
        self._cells[self._start : self._start + _ROW] = memoryview(bytes(8 * _ROW)).cast("q")  # of whoever died here

    @property
    def requests(self) -> int:
        """Requests for answers under way in this process."""
        return self._cells[self._start + _REQUESTS]

    @requests.setter
    def requests(self, count: int) -> None:
        self._cells[self._start + _REQUESTS] = count

    @property
    def body_bytes(self) -> int:
        """Bytes of bodies that this process holds."""
        return self._cells[self._start + _BYTES]

    @body_bytes.setter
    def body_bytes(self, count: int) -> None:
        self._cells[self._start + _BYTES] = count

    @property
    def all_requests(self) -> int:
        return sum(self._cells[_REQUESTS::_ROW])

    @property
    def all_body_bytes(self) -> int:
        return sum(self._cells[_BYTES::_ROW])

    @property
    def image_s(self) -> float:
        """Seconds from one answer to the next while all lanes are busy; the engine's process writes and all read."""
        return max(self._cells[_IMAGE_NS::_ROW]) / 1e9

    @image_s.setter
    def image_s(self, seconds: float) -> None:
        self._cells[self._start + _IMAGE_NS] = int(1e9 * seconds)

    @property
    def depth(self) -> int:
        """Images queued: now, in the engine's process; elsewhere as of the last batch."""
        return max(self._cells[_DEPTH::_ROW]) if self.read_depth is None else self.read_depth()

    @depth.setter
    def depth(self, count: int) -> None:
        self._cells[self._start + _DEPTH] = count


def make_board(path: Path, rows: int) -> None:
    """All zero."""
    path.write_bytes(bytes(8 * _ROW * rows))


def _opened(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)

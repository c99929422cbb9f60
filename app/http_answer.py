"""HTTP/1.1 answers, read piece by piece: what the load generator needs of them, and nothing it does not. No sockets."""

import math

_MAX_HEAD = 2**16  # bytes; a longer head is no answer to wait for


class Answer:
    """One HTTP/1.1 answer, read piece by piece. ``batch``: its X-Batch-Size, or 0; ``closes``: its connection ends."""

    __slots__ = ("_chunked", "_left", "_rest", "batch", "closes", "status")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything and wait for the next answer."""
        self.status = self.batch = 0
        self.closes = self._chunked = False
        self._left = 0.0  # bytes to come of the body, or of a chunk and its line end; -1: the trailer
        self._rest = b""  # what came of an unfinished head or line

    @property
    def begun(self) -> bool:
        return bool(self.status or self._rest)

    @property
    def until_close(self) -> bool:
        """Whether the end of the connection is the end of the body."""
        return self._left == math.inf

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True once the answer is whole. ValueError for what is no HTTP/1.1 answer."""
        if not self.status:
            data = self._rest + data
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                return self._keep(data)
            self._read_head(data[: end - 2].lower())
            data, self._rest = data[end:], b""
            if self.status < 200:  # an interim answer: the real one follows
                self.begin()
                return bool(data) and self.feed(data)
        if self._chunked:
            return self._read_chunks(self._rest + data)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("more bytes than the answer has")
        return self._left == 0

    def _read_head(self, head: bytes) -> None:
        if not (head.startswith(b"http/1.") and head[9:12].isdigit()):
            raise ValueError("no HTTP/1.1 answer")
        self.status = int(head[9:12])
        batch, connection = _field(head, b"\r\nx-batch-size:"), _field(head, b"\r\nconnection:")
        self.batch = int(batch) if batch.isdigit() else 0
        self.closes = connection == b"close" or (head[7:8] == b"0" and connection != b"keep-alive")
        self._chunked = _field(head, b"\r\ntransfer-encoding:") == b"chunked"
        if self._chunked or self.status < 200 or self.status in (204, 304):
            return
        length = _field(head, b"\r\ncontent-length:")
        self._left = float(int(length)) if length else math.inf
        self.closes |= not length

    def _read_chunks(self, data: bytes) -> bool:
        at, self._rest = 0, b""
        while True:
            skipped = min(max(self._left, 0), len(data) - at)
            self._left -= skipped
            at += int(skipped)
            end = data.find(b"\r\n", at)
            if self._left > 0 or end < 0:
                return self._keep(data[at:])
            line, at = data[at:end], end + 2
            if self._left == 0:
                size = int(line.partition(b";")[0], 16)
                self._left = size + 2 if size else -1
            elif not line:
                return True

    def _keep(self, rest: bytes) -> bool:
        """Not whole: ``rest`` waits for more."""
        if len(rest) > _MAX_HEAD:
            raise ValueError("a head or a line without end")
        self._rest = rest
        return False


def _field(head: bytes, name: bytes) -> bytes:
    """A field's value in a lower-case head; ``name`` has the line end before it and its colon."""
    at = head.find(name)
    return head[at + len(name) : head.find(b"\r\n", at + 2)].strip() if at >= 0 else b""

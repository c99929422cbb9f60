"""Requests that are not what they say, as bytes for a socket: good ones oddly clothed, bad ones, and no HTTP at all."""

from collections.abc import Iterator

from tests.hostile import bodies, connections
from tests.hostile.messages import GONE, Attempt, jpeg, request


def attempts() -> Iterator[Attempt]:
    """Against a service whose bodies may pause three seconds, and be of 20 MiB."""
    for of in (
        connections.lengths,
        connections.chunks,
        connections.slowness,
        connections.heads,
        connections.targets,
        connections.versions,
        connections.methods,
        connections.expectations,
        bodies.encodings,
        bodies.forms,
        bodies.texts,
        bodies.tensors,
    ):
        for name, pieces, *answers in of():
            sent = [pieces] if isinstance(pieces, bytes) else pieces
            yield Attempt(f"{of.__name__}: {name}", sent, [a if isinstance(a, set) else {a} for a in answers])
    for name, sent in {
        "all": request(jpeg()),
        "a part": request(jpeg(), length=len(jpeg()) + 9),
        "nothing": b"",
    }.items():
        yield Attempt(f"half closed after {name}", [sent], [{200, GONE}], ends=True)

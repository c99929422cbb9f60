"""Does every peer answer, and the same as the engine? Starts one after the other, posts one JPEG, kills it.

    python -m tests.bench.peers.check [NAME ...] [--weights WEIGHTS] [--kill]

The project's own Python runs it. The top label is the engine's; its probability is the engine's within 1e-3 for the
engine variants, within 0.02 for the tutorials, whose resize rounds differently. One line a peer, with the seconds from
its start to its first answer. What SIGTERM to its process group, or SIGKILL, leaves running for 15 s is a failure too.
"""

import argparse
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

from tests.bench.peers.table import PEERS, Peer

TOLERANCE = {"engine": 1e-3, "tutorial": 0.02}
PATIENCE_S = 120.0
LEAVING_S = 15.0


def photo() -> bytes:
    """scikit-image's ``coffee`` (CC0, Rachel Michetti) at 500x375, quality 90."""
    out = io.BytesIO()
    Image.fromarray(data.coffee()).resize((500, 375)).save(out, "JPEG", quality=90)
    return out.getvalue()


def expected(jpeg: bytes, weights: str) -> tuple[str, float]:
    """The engine's top label and its probability."""
    from app.cli import load_engine
    from app.engine import Ask
    from app.images import decode
    from app.settings import Settings

    engine = load_engine(Settings(weights=weights, threads=1, lanes=1))
    picture = decode(jpeg, size=engine.card.size, crop=engine.card.crop, max_pixels=10**8)
    (answer,) = engine([Ask(picture.pixels, 5)])
    return engine.card.labels[answer.indices[0]].en, float(answer.probabilities[0])


def post(peer: Peer, port: int, jpeg: bytes) -> dict[str, Any]:
    """The answer; OSError where nobody listens, RuntimeError where it is not a 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", peer.path, jpeg, {"Content-Type": peer.content_type})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{response.status} {body[:200]!r}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def first_answer(peer: Peer, process: subprocess.Popen[bytes], port: int, jpeg: bytes) -> dict[str, Any]:
    """Ask until it answers: a server that is about to start refuses, or says 404 or 503 for a while."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return post(peer, port, jpeg)
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no answer: {error!r}") from error
            time.sleep(0.05)


def left(mark: str) -> list[int]:
    """The processes that were started with ``mark`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def stop(process: subprocess.Popen[bytes], mark: str, how: signal.Signals) -> list[int]:
    """The signal to the group, then patience; what is left after it is killed, and told."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    until = time.monotonic() + LEAVING_S
    while (process.poll() is None or left(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    leftover = left(mark)
    for pid in leftover:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return leftover


def check(peer: Peer, jpeg: bytes, weights: str, top: tuple[str, float], how: signal.Signals) -> str:
    """What is wrong, or nothing; prints the peer's line."""
    mark, port = f"PEER_MARK={uuid.uuid4()}", free_port()
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        command = ["env", mark, *peer.command(port, weights)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            answer = first_answer(peer, process, port, jpeg)
            ready, wrong = time.monotonic() - started, ""
        except RuntimeError as error:
            answer, ready, wrong = {}, time.monotonic() - started, str(error)
        leftover = stop(process, mark, how)
        log.seek(0)
        said = log.read().decode(errors="replace")
    wrong = wrong or difference(peer, answer, top) or (f"left running: {len(leftover)} processes" if leftover else "")
    best = answer["predictions"][0] if answer else {"label": "-", "probability": float("nan")}
    verdict = wrong or "ok"
    print(f"{peer.name:24}{best['label']:16}{best['probability']:8.5f}{ready:7.1f} s  {verdict}", flush=True)
    if wrong:
        print(said[-4000:], file=sys.stderr)
    return wrong


def difference(peer: Peer, answer: dict[str, Any], top: tuple[str, float]) -> str:
    """What tells the answer from the engine's, or nothing."""
    predictions = answer["predictions"]
    label, probability = predictions[0]["label"], predictions[0]["probability"]
    if len(predictions) != 5 or label != top[0] or abs(probability - top[1]) > TOLERANCE[peer.variant]:
        return f"not {top[0]} {top[1]:.5f}"
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; all of them if none")
    parser.add_argument("--weights", default="resnet18-nam-tiny-imagenet")
    parser.add_argument("--kill", action="store_true", help="end them with SIGKILL in place of SIGTERM")
    arguments = parser.parse_args()
    how = signal.SIGKILL if arguments.kill else signal.SIGTERM
    jpeg = photo()
    top = expected(jpeg, arguments.weights)
    print(f"{'the engine itself':24}{top[0]:16}{top[1]:8.5f}")
    wrong = [check(PEERS[name], jpeg, arguments.weights, top, how) for name in arguments.names or PEERS]
    return 1 if any(wrong) else 0


if __name__ == "__main__":
    sys.exit(main())

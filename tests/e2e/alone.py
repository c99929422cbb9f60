"""A whole life of the service, asked for everything and by everybody, as one program: test_alone.py runs it in a
network that has a loopback and nothing else, and reads what it writes.

``python -m tests.e2e.alone FOLDER WORKERS``: ``told.json`` there, ``log``, ``audit`` (what sitecustomize.py saw).
"""

import fcntl
import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from skimage import data

NAM = Path(sys.executable).parent / "nam"
KEY, WRONG, MARK = "k3y-of-the-service", "wr0ng-key-of-a-caller", "t0ld-in-an-image"
HIDDEN = (KEY, WRONG, MARK)
_UP, _GET_FLAGS, _SET_FLAGS = 0x1, 0x8913, 0x8914

# Runs in every Python process of the service: what asks for the network, or unpickles, is written down; no more than
# loopback is let through.
AUDIT = """if True:
    import os, sys
    ask = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    send = ("socket.connect", "socket.sendto", "socket.sendmsg")
    def hook(event, args):
        if event in ask:
            told = args[0]
        elif event in send:
            told = args[1][0] if isinstance(args[1], tuple) else None
        elif event == "pickle.find_class":
            told = args
        else:
            return
        if event == "pickle.find_class" or told not in (None, "", "127.0.0.1", "::1"):
            out = os.open(os.environ["AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(out, f"{event} {told!r} {sys.argv}\\n".encode())
            os.close(out)
            raise PermissionError(event)
    sys.addaudithook(hook)
"""


def loopback_up() -> None:
    with socket.socket() as one:
        name = b"lo".ljust(16, b"\0")
        (flags,) = struct.unpack_from("H", fcntl.ioctl(one, _GET_FLAGS, name + bytes(24)), 16)
        if not flags & _UP:
            fcntl.ioctl(one, _SET_FLAGS, name + struct.pack("H", flags | _UP) + bytes(22))


def lost_ways() -> int:
    """How often somebody in this network asked for a way out, and the kernel knew none."""
    names, counts = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines()[:2])
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(counts[names.index("OutNoRoutes")]) + int(six["Ip6OutNoRoutes"])


def photo(form: str) -> bytes:
    """With words in it that no log may have."""
    out, exif, text = io.BytesIO(), Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010E] = exif[0x013B] = MARK
    text.add_text("Comment", MARK)
    own: dict[str, Any] = {"PNG": {"pnginfo": text}, "TIFF": {"tiffinfo": {270: MARK}}}.get(form, {"exif": exif})
    Image.fromarray(data.coffee()).save(out, form, **own)
    return out.getvalue()


def requests() -> dict[str, tuple[str, str, bytes, dict[str, str]]]:
    """By what each is called: method, path, body, headers."""
    key = {"authorization": f"Bearer {KEY}"}
    png, as_json = (key | {"content-type": kind} for kind in ("image/png", "application/json"))
    multipart = key | {"content-type": "multipart/form-data; boundary=b"}
    image = photo("PNG")
    ask = {"id": KEY, "inputs": [{"name": MARK, "datatype": "BYTES", "shape": [1], "data": [KEY]}]}
    form = f'--b\r\ncontent-disposition: form-data; name="file"; filename="{MARK}{KEY}"\r\n\r\n'.encode()
    model = "/v2/models/resnet18-nam-tiny-imagenet"
    good = {
        **{f"predict {kind}": ("POST", "/predict", photo(kind), png) for kind in ("JPEG", "PNG", "TIFF", "WEBP")},
        "form": ("POST", "/predict", form + image + b"\r\n--b--\r\n", multipart),
        **{f"attention {kind}": ("POST", f"/attention?format={kind}", image, png) for kind in ("json", "png", "npz")},
        "effects": ("POST", "/attention?effects=true&method=product", image, png),
        "key in the id": ("POST", "/predict", image, png | {"x-request-id": f"{KEY} and more"}),
        "key in the query": ("GET", f"/model?key={KEY}", b"", key),
        **{path: ("GET", path, b"", key) for path in ("/attention/weights", "/v2", model)},
        **{
            path: ("GET", path, b"", {})
            for path in ("/", "/web/app.js", "/docs", "/openapi.json", "/metrics", "/readyz")
        },
    }
    bad = {
        "no key": ("POST", "/predict", image, {}),
        "wrong key": ("POST", "/predict", image, {"authorization": f"Bearer {WRONG}"}),
        "key as basic": ("GET", "/model", b"", {"authorization": f"Basic {KEY}"}),
        "key in a cookie": ("GET", "/model", b"", {"cookie": f"key={KEY}", "x-api-key": KEY}),
        "key in the path": ("GET", f"/{KEY}/{WRONG}", b"", key),
        "key for a method": ("DELETE", f"/predict?{KEY}", b"", key),
        "key as a parameter": ("POST", f"/predict?top_k={KEY}&lang={WRONG}", image, png),
        "key as a deadline": ("POST", "/predict", image, png | {"x-timeout-ms": KEY, "traceparent": KEY}),
        "key as a type": ("POST", "/predict", image, key | {"content-type": KEY, "accept": WRONG}),
        "key as an image": ("POST", "/predict", json.dumps({"image": KEY}).encode(), as_json),
        "key in an id that is none": ("POST", "/predict", image, png | {"x-request-id": f"{KEY}\x1b[31m"}),
        "key in JSON": ("POST", f"{model}/infer", json.dumps(ask).encode(), key),
        "half an image": ("POST", "/predict?top_k=1", photo("TIFF")[:-9000], png),
    }
    return good | bad


def send(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def send_raw(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(text)
        return connection.recv(65536)


def start(folder: Path, port: int, workers: str) -> subprocess.Popen[bytes]:
    (folder / "keys").write_text(KEY + "\n")
    (folder / "sitecustomize.py").write_text(AUDIT)
    told = {"PYTHONPATH": str(folder), "AUDIT": str(folder / "audit"), "NAM_PORT": str(port), "NAM_WORKERS": workers}
    told |= {"NAM_API_KEYS_FILE": str(folder / "keys"), "NAM_OPEN": "page,docs,metrics", "NAM_LOG_LEVEL": "debug"}
    told |= {"NAM_CACHE_DIR": str(folder.parent / "cache"), "NAM_DEVICE": "cpu", "NAM_LANES": "1"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([NAM, "serve"], stdout=log, stderr=log, env=os.environ | told)


def ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if send(port, "GET", "/readyz", b"", {}) == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("it did not start")


def told_of_keys() -> dict[str, bool]:
    """Of every process of the service, by its module: whether its environment says where the keys are."""
    found: dict[str, bool] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().split(b"\0")
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"AUDIT={sys.argv[1]}/audit".encode() in environment and b"-m" in command:
            name = b" ".join(command[command.index(b"-m") + 1 :][:2]).decode().rstrip("0123456789 ")
            secret = [one for one in environment if one.startswith(b"NAM_API_KEYS") and not one.endswith(b"=")]
            found[name] = found.get(name, False) or bool(secret)
    return found


def live(folder: Path, workers: str) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = start(folder, port, workers)
    try:
        ready(port, process)
        told: dict[str, Any] = {"answers": {name: send(port, *one) for name, one in requests().items()}}
        told["keys"] = told_of_keys()
        told["malformed"] = send_raw(port, f"GET /?{KEY} HTTP/9.9\r\nauthorization: {WRONG}\r\n\r\n".encode()).decode()
        process.send_signal(signal.SIGTERM)
        return told | {"code": process.wait(60)}
    finally:
        process.kill()


def main() -> None:
    folder, workers = Path(sys.argv[1]), sys.argv[2]
    loopback_up()
    before = lost_ways()
    told = live(folder, workers) | {"lost": lost_ways() - before}
    # And the count does count, where nothing but loopback is there.
    alone = [name for _, name in socket.if_nameindex()] == ["lo"]
    if alone:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.connect_ex(("192.0.2.1", 53))
    told |= {"alone": alone, "counted": lost_ways() - before - told["lost"]}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()

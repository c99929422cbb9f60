"""Two ways to build an image and to run it: Docker, and buildah without any daemon or namespace (``chroot``)."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
NAME = "localhost/nam-serve"
BASE = "localhost/nam-base"

# What whoever runs a container puts there, whatever is inside.
NOT_OURS = re.compile(r"(proc|sys|dev|run|tmp)/|etc/(hosts|hostname|resolv\.conf|mtab)$|\.dockerenv$")


@dataclass(frozen=True)
class Entry:
    """A file of an image: what would differ if somebody had written it."""

    size: int
    mode: int
    mtime: int
    is_file: bool


class Container(Protocol):
    """A container that was started with the image's own command."""

    url: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]: ...
    def user(self) -> int: ...
    def log(self) -> str: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...
    def files(self) -> dict[str, Entry]: ...


class Engine(Protocol):
    gpu: bool

    def base(self) -> str | None: ...
    def build(self, target: str, base: str | None, labels: dict[str, str]) -> None: ...
    def config(self, target: str) -> dict[str, Any]: ...
    def files(self, target: str) -> dict[str, Entry]: ...
    def started(self, target: str, *, read_only: bool) -> Any: ...


def out(*command: object, **options: Any) -> str:
    """What a command prints; its own words where it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, **options
    )
    if done.returncode:
        raise SystemExit(f"FAILED: {' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def pip_settings() -> dict[str, dict[str, str]]:
    """How pip is set here, by file or by environment: section -> key -> value."""
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    settings: dict[str, dict[str, str]] = {}
    for section, key, value in re.findall(r"^(\S+?)\.(\S+)='(.*)'$", listed, re.M):
        settings.setdefault("global" if section == ":env:" else section, {})[key] = value.replace("\\n", " ")
    return settings


@contextmanager
def pip_conf() -> Iterator[tuple[Path, list[str]]]:
    """The same as a file, and the paths of this machine that it names: a mirror, a certificate, a folder of wheels."""
    settings = pip_settings()
    lines = [f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for name, keys in settings.items()]
    words = " ".join(value for keys in settings.values() for value in keys.values()).split()
    named = {Path(word.removeprefix("file://")) for word in words if word.removeprefix("file://").startswith("/")}
    # An index of files is a folder "simple", whose links lead to others beside it.
    paths = sorted({str(path.parent if path.name == "simple" else path) for path in named})
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("".join(lines))
        file.flush()
        yield Path(file.name), [path for path in paths if Path(path).exists()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Docker:
    """The engine of this machine. With a driver of NVIDIA's here, the image for GPUs is given all of them."""

    def __init__(self) -> None:
        self.gpu = (
            shutil.which("nvidia-smi") is not None
            and not subprocess.run(["nvidia-smi"], capture_output=True).returncode
        )

    def base(self) -> str | None:
        return None

    def build(self, target: str, base: str | None, labels: dict[str, str]) -> None:
        arguments = [f"--build-arg={name}={value}" for name, value in labels.items()]
        if base:
            arguments.append(f"--build-arg=BASE={base}")
        with pip_conf() as (conf, _):
            secret = f"--secret=id=pip.conf,src={conf}"
            environment = os.environ | {"DOCKER_BUILDKIT": "1"}
            out(
                "docker",
                "build",
                *arguments,
                secret,
                "--target",
                target,
                "-t",
                f"{NAME}:{target}",
                ROOT,
                env=environment,
            )

    def config(self, target: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(out("docker", "inspect", f"{NAME}:{target}"))[0]["Config"]
        return config

    def files(self, target: str) -> dict[str, Entry]:
        container = out("docker", "create", f"{NAME}:{target}").strip()
        try:
            return _exported(container)
        finally:
            out("docker", "rm", container)

    @contextmanager
    def started(self, target: str, *, read_only: bool) -> Iterator[Container]:
        hardened = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp", "--publish=127.0.0.1::8000"]
        if read_only:
            hardened.append("--read-only")
        if self.gpu and target == "gpu":
            hardened.append("--gpus=all")
        container = out("docker", "run", "--detach", *hardened, f"{NAME}:{target}").strip()
        try:
            yield _DockerContainer(container)
        finally:
            out("docker", "rm", "--force", container)


class _DockerContainer:
    def __init__(self, name: str) -> None:
        self._name = name
        self.url = "http://" + out("docker", "port", name, "8000/tcp").split()[0]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", "exec", self._name, *command], capture_output=True, text=True)

    def user(self) -> int:
        process = out("docker", "inspect", "--format", "{{.State.Pid}}", self._name).strip()
        return _user(int(process))

    def log(self) -> str:
        return subprocess.run(
            ["docker", "logs", self._name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ).stdout

    def terminate(self) -> None:
        out("docker", "kill", "--signal=TERM", self._name)

    def wait(self) -> int:
        return int(out("docker", "wait", self._name))

    def files(self) -> dict[str, Entry]:
        return _exported(self._name)


def _exported(container: str) -> dict[str, Entry]:
    found = {}
    with (
        subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            size, changed = (member.size, int(member.mtime)) if member.isfile() else (0, 0)
            found[member.name] = Entry(size, member.mode, changed, member.isfile())
    return {name: entry for name, entry in found.items() if not NOT_OURS.match(name)}


class Buildah:
    """As root, on a machine where no container can be: the root directory alone is the image's. The network, the
    processes and the limits are the host's, so that what runs here serves on loopback."""

    gpu = False  # its devices and its driver's libraries would be the container toolkit's to bring

    def base(self) -> str | None:
        """Debian with its own Python and nothing else, made once."""
        if subprocess.run(["buildah", "inspect", BASE], capture_output=True).returncode == 0:
            return BASE
        with tempfile.TemporaryDirectory() as folder:
            packages = "--include=python3,python3-venv,ca-certificates"
            out("debootstrap", "--variant=minbase", packages, "bookworm", folder)
            for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
                shutil.rmtree(Path(folder) / waste)
            container = out("buildah", "from", "scratch").strip()
            out("buildah", "add", "--quiet", container, folder, "/")
            out("buildah", "commit", "--quiet", "--format", "docker", "--rm", container, BASE)
        return BASE

    def build(self, target: str, base: str | None, labels: dict[str, str]) -> None:
        arguments = [f"--build-arg={name}={value}" for name, value in (labels | {"BASE": base or ""}).items()]
        with pip_conf() as (conf, paths):
            shared = [f"--volume={path}:{path}:ro" for path in paths]
            form = ["--isolation=chroot", "--format=docker", "--layers=false", f"--secret=id=pip.conf,src={conf}"]
            out("buildah", "bud", *form, *shared, *arguments, "--target", target, "--tag", f"{NAME}:{target}", ROOT)

    def config(self, target: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(out("buildah", "inspect", "--type=image", f"{NAME}:{target}"))["Docker"][
            "config"
        ]
        return config

    def files(self, target: str) -> dict[str, Entry]:
        container = out("buildah", "from", f"{NAME}:{target}").strip()
        try:
            return _walked(Path(out("buildah", "mount", container).strip()))
        finally:
            out("buildah", "rm", container)

    @contextmanager
    def started(self, target: str, *, read_only: bool) -> Iterator[Container]:
        name = out("buildah", "from", f"{NAME}:{target}").strip()
        root = Path(out("buildah", "mount", name).strip())
        config = self.config(target)
        container = _Chroot(name, root, [*config["Entrypoint"], *config["Cmd"]], read_only)
        try:
            yield container
        finally:
            container.end()
            out("buildah", "rm", name)


class _Chroot:
    """``read_only``: from the first of the image's own processes on, and until the signal: buildah itself writes there,
    before and after."""

    def __init__(self, name: str, root: Path, command: list[str], read_only: bool) -> None:
        self._root, self._read_only, port = root, read_only, free_port()
        self.url = f"http://127.0.0.1:{port}"
        run = ["buildah", "run", "--isolation=chroot", "--mount=type=tmpfs,destination=/tmp"]
        run += ["--env=NAM_HOST=127.0.0.1", f"--env=NAM_PORT={port}", name, "--", *command]
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - as long as this
        self._process = subprocess.Popen(run, stdout=self._log, stderr=self._log)
        waited(self._inside, 10)
        if read_only:
            out("mount", "-o", "remount,ro", root)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Beside the image's own process, as the same user, with the same environment."""
        process = self._inside()
        user, environment = _user(process), Path(f"/proc/{process}/environ").read_text().rstrip("\0").split("\0")
        enter = ["nsenter", f"--target={process}", "--mount", "--root", "--wd", f"--setuid={user}", f"--setgid={user}"]
        return subprocess.run([*enter, "env", "-i", *environment, *command], capture_output=True, text=True)

    def _inside(self) -> int:
        """The image's own process, below buildah's, which are root's; 0 before there is one, and after."""
        process = self._process.pid
        with suppress(OSError, IndexError):
            while (command := Path(f"/proc/{process}/cmdline").read_bytes()).startswith(b"buildah"):
                children = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
                process = int(" ".join(children).split()[0])
            return process if command and _user(process) else 0
        return 0

    def user(self) -> int:
        return _user(self._inside())

    def log(self) -> str:
        return Path(self._log.name).read_text()

    def terminate(self) -> None:
        if self._read_only:
            out("mount", "-o", "remount,rw", self._root)
        if process := self._inside():
            os.kill(process, signal.SIGTERM)

    def wait(self) -> int:
        return self._process.wait(60)

    def files(self) -> dict[str, Entry]:
        return _walked(self._root)

    def end(self) -> None:
        if self._process.poll() is None:
            self.terminate()
            self.wait()


def _user(process: int) -> int:
    """The effective user of a process of this machine."""
    (found,) = re.findall(r"^Uid:\s+\d+\s+(\d+)", Path(f"/proc/{process}/status").read_text(), re.M)
    return int(found)


def _walked(root: Path) -> dict[str, Entry]:
    found, counted = {}, set()
    for folder, folders, files in sorted(os.walk(root)):
        for name in (*sorted(folders), *sorted(files)):
            path = Path(folder, name)
            told = path.lstat()
            is_file = stat.S_ISREG(told.st_mode) and told.st_ino not in counted  # a file of two names counts once
            counted.add(told.st_ino)
            size, changed = (told.st_size, int(told.st_mtime)) if is_file else (0, 0)
            found[str(path.relative_to(root))] = Entry(size, stat.S_IMODE(told.st_mode), changed, is_file)
    return {name: entry for name, entry in found.items() if not NOT_OURS.match(name)}


def engine() -> Engine:
    """Docker where it answers, else buildah."""
    if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode:
        return Docker()
    if shutil.which("buildah") and shutil.which("debootstrap") and os.geteuid() == 0:
        return Buildah()
    raise SystemExit("docker/smoke wants a Docker engine, or root with buildah and debootstrap")


def waited(reached: Callable[[], object], seconds: float) -> float:
    """Seconds until ``reached()`` is true. Raises SystemExit where it is not in time."""
    began = time.monotonic()
    while not reached():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"FAILED: not within {seconds} s")
        time.sleep(0.02)
    return time.monotonic() - began

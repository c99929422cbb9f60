"""Which engine serves: the table row by row, what is asked for above it, and the two probes it stands on."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app import choice
from app.choice import Choice, choose, load_engine
from app.engine import EngineError
from app.settings import Settings

ROOT = Path(__file__).parents[2]
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    def is_like(cuda: int = 0, flags: str = "") -> None:
        monkeypatch.setattr(choice, "_cuda_devices", lambda: cuda)
        monkeypatch.setattr(choice, "_cpu_flags", lambda: set(flags.split()))

    return is_like


def chosen(*asked: str) -> tuple[str, str, str]:
    made = choose(*asked)
    return made.engine, made.device, made.dtype


@pytest.mark.parametrize(
    ("cuda", "flags", "row"),
    [
        (1, "", ("torch", "cuda", "bfloat16")),
        (8, "avx2 avx512_bf16", ("torch", "cuda", "bfloat16")),
        (0, "avx2 avx512_bf16", ("openvino", "cpu", "bfloat16")),
        (0, "avx2 amx_bf16", ("openvino", "cpu", "bfloat16")),
        (0, "avx2 avx512f avx512_vnni", ("openvino", "cpu", "float32")),
        (0, "", ("openvino", "cpu", "float32")),
    ],
)
def test_the_table(machine: Machine, cuda: int, flags: str, row: tuple[str, str, str]) -> None:
    machine(cuda, flags)
    assert chosen("auto", "auto", "auto") == row


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (("torch", "auto", "auto"), ("torch", "cuda", "bfloat16")),
        (("openvino", "auto", "auto"), ("openvino", "cpu", "bfloat16")),
        (("auto", "cpu", "auto"), ("openvino", "cpu", "bfloat16")),
        (("auto", "cuda", "auto"), ("torch", "cuda", "bfloat16")),
        (("auto", "auto", "float32"), ("torch", "cuda", "float32")),
        (("torch", "cpu", "float32"), ("torch", "cpu", "float32")),
        (("openvino", "cpu", "float32"), ("openvino", "cpu", "float32")),
    ],
)
def test_what_is_asked_for_is_taken(machine: Machine, asked: tuple[str, ...], taken: tuple[str, ...]) -> None:
    machine(cuda=1, flags="avx512_bf16")
    assert chosen(*asked) == taken


def test_bf16_is_taken_where_it_is_asked_for_though_the_cpu_lacks_it(machine: Machine) -> None:
    machine(flags="avx2")
    assert chosen("auto", "auto", "bfloat16") == ("openvino", "cpu", "bfloat16")


@pytest.mark.parametrize(
    ("cuda", "asked", "words"),
    [
        (0, ("auto", "cuda", "auto"), "the driver finds no CUDA device"),
        (0, ("torch", "cuda", "auto"), "the driver finds no CUDA device"),
        (1, ("openvino", "cuda", "auto"), "NAM_ENGINE=openvino serves on the CPU"),
    ],
)
def test_what_cannot_be_is_refused(machine: Machine, cuda: int, asked: tuple[str, str, str], words: str) -> None:
    machine(cuda)
    with pytest.raises(EngineError, match=words):
        choose(*asked)


def test_every_part_of_a_choice_has_its_reason(machine: Machine) -> None:
    machine(flags="amx_bf16")
    assert choose("auto", "auto", "auto") == Choice(
        "openvino",
        "cpu",
        "bfloat16",
        "cpu: no CUDA device was found; openvino: the table's for it; bfloat16: the CPU has instructions for it",
    )
    assert choose("torch", "cpu", "float32").reason == "cpu: asked for; torch: asked for; float32: asked for"


def test_a_cpu_that_is_asked_for_costs_no_look_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("looked for a GPU"))
    assert chosen("auto", "cpu", "float32") == ("openvino", "cpu", "float32")


@pytest.mark.parametrize(
    ("engine", "module", "kind", "own"),
    [
        ("openvino", "app.openvino_engine", "OpenVINOEngine", {"cache": Path("/c"), "lone_threads": 0}),
        ("torch", "app.torch_engine", "TorchEngine", {"device": "cpu"}),
    ],
)
def test_the_chosen_engine_is_started_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, engine: str, module: str, kind: str, own: dict[str, object]
) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{kind: lambda path, **options: (path, options)}))
    sizes, sha256 = {"threads": 2, "max_batch": 3, "lanes": 4}, "5" * 64
    settings = Settings(
        engine=engine, device="cpu", dtype="float32", weights="w", weights_sha256=sha256, cache_dir="/c", **sizes
    )
    path, options = load_engine(settings)
    assert "asked for" in options.pop("reason")
    assert (path, options) == ("w", {"sha256": sha256, "dtype": "float32", **sizes, **own})


def test_who_has_no_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.openvino_engine", SimpleNamespace(OpenVINOEngine=None))
    settings = Settings(engine="openvino", device="cpu", dtype="float32", cache_dir="~no-such-user/cache")
    with pytest.raises(EngineError, match="no such home"):
        load_engine(settings)


# The probes.


class Driver:
    """NVIDIA's library as it would be; each function returns 0 where all is well."""

    def __init__(self, init: int = 0, count: int = 0, devices: int = 0) -> None:
        self.cuInit = lambda _: init
        self.codes, self.devices = count, devices

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.devices
        return self.codes


@pytest.mark.parametrize(
    ("driver", "found"),
    [(Driver(devices=2), 2), (Driver(), 0), (Driver(init=100, devices=2), 0), (Driver(count=3, devices=2), 0)],
)
def test_devices_are_as_the_driver_counts_them(monkeypatch: pytest.MonkeyPatch, driver: Driver, found: int) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert choice._cuda_devices() == found


def test_without_the_drivers_library_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert choice._cuda_devices() == 0


def test_flags_are_those_of_the_first_core(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx512_bf16\nvmx flags\t: ept\nprocessor\t: 1\nflags\t\t: fpu amx_bf16\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert choice._cpu_flags() == {"fpu", "avx512_bf16"}


@pytest.mark.parametrize("text", ["", "processor\t: 0\nFeatures\t: fp asimd bf16\n"])
def test_another_kind_of_cpu_has_no_flags(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert choice._cpu_flags() == set()


def test_where_linux_says_nothing_there_are_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "Path", lambda _: Path("/nowhere/cpuinfo"))
    assert choice._cpu_flags() == set()


def test_choosing_imports_neither_torch_nor_openvino() -> None:
    code = """if True:
        import sys
        from app.choice import choose
        choose("auto", "auto", "auto")
        print(sorted({"torch", "openvino"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_int8_is_openvinos_alone() -> None:
    assert choose("auto", "cpu", "int8").dtype == "int8"
    with pytest.raises(EngineError, match="OpenVINO"):
        load_engine(Settings(engine="torch", device="cpu", dtype="int8"))

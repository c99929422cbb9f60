"""Which engine serves, where, in what precision, and why: one fixed table. tests/bench/RESULTS.md has the measurements.

    device                          engine     dtype       because
    CUDA                            torch      bfloat16    CUDA graphs; tensor cores (not measured yet)
    CPU with bf16 instructions      openvino   bfloat16    fastest at equal accuracy
    any other CPU                   openvino   float32     without such instructions bf16 is emulated

What is asked for by name is taken. No torch: whoever looks for a GPU must not pay for it.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.engine import Engine, EngineError
from app.graphs import cache_folder
from app.settings import Settings

Device = Literal["auto", "cpu", "cuda"]
EngineName = Literal["auto", "openvino", "torch"]
Dtype = Literal["auto", "float32", "bfloat16", "int8"]

# As Linux names the instructions that multiply bf16: AVX-512's and AMX's.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True)
class Choice:
    engine: Literal["openvino", "torch"]
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "int8"]
    reason: str


def choose(engine: EngineName, device: Device, dtype: Dtype) -> Choice:
    """The table, and above it what is asked for. Raises EngineError for what cannot be."""
    on, why_device = _device(device)
    if engine == "openvino" and on == "cuda":
        if device == "cuda":
            raise EngineError("NAM_ENGINE=openvino serves on the CPU, and NAM_DEVICE=cuda asks for another device")
        on, why_device = "cpu", "the engine's only device"
    chosen: Literal["openvino", "torch"] = ("torch" if on == "cuda" else "openvino") if engine == "auto" else engine
    precision, why_dtype = _dtype(dtype, on)
    why_engine = "the table's for it" if engine == "auto" else "asked for"
    reason = f"{on}: {why_device}; {chosen}: {why_engine}; {precision}: {why_dtype}"
    return Choice(chosen, on, precision, reason)


def load_engine(settings: Settings, *, lone_threads: int = 0) -> Engine:
    """The engine that the settings ask for, and no other is imported. Raises EngineError.

    ``lone_threads``: the CPU threads of an image that finds it idle; 0 leaves that to the engine.
    """
    choice = choose(settings.engine, settings.device, settings.dtype)
    weights, sha256 = settings.weights, settings.weights_sha256
    how = {"threads": settings.threads, "max_batch": settings.max_batch, "lanes": settings.lanes}
    if choice.engine == "openvino":
        from app.openvino_engine import OpenVINOEngine

        how["lone_threads"] = lone_threads
        cache = cache_folder(settings.cache_dir)
        return OpenVINOEngine(weights, sha256=sha256, cache=cache, dtype=choice.dtype, reason=choice.reason, **how)
    from app.torch_engine import TorchEngine

    device, dtype = choice.device, choice.dtype
    return TorchEngine(weights, sha256=sha256, device=device, dtype=dtype, reason=choice.reason, **how)


def _device(asked: Device) -> tuple[Literal["cpu", "cuda"], str]:
    if asked == "cpu":
        return "cpu", "asked for"
    found = _cuda_devices()
    if asked == "cuda":
        if not found:
            raise EngineError("NAM_DEVICE=cuda, and the driver finds no CUDA device")
        return "cuda", "asked for"
    return ("cuda", "a CUDA device was found") if found else ("cpu", "no CUDA device was found")


def _dtype(asked: Dtype, on: str) -> tuple[Literal["float32", "bfloat16", "int8"], str]:
    if asked != "auto":
        return asked, "asked for"
    if on == "cuda":
        return "bfloat16", "the device multiplies it faster"
    if _BF16_FLAGS & _cpu_flags():
        return "bfloat16", "the CPU has instructions for it"
    return "float32", "the CPU has no bf16 instructions"


def _cuda_devices() -> int:
    """As the driver counts them, NVIDIA's library asked directly; 0 without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _cpu_flags() -> set[str]:
    """What Linux says the first core can do; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())

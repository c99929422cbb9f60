"""Every knob of the service: a unit in each name, one sentence each. The only reader of the environment (``NAM_*``)."""

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 2**20
# What may need no key where keys are set; health never needs one.
_DOORS = frozenset({"page", "docs", "metrics"})
# Of anything: messages between processes take 64 bits, and memory is twenty times the pixels.
_MOST = 10**12


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="NAM_",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # where keys would stand
    )

    weights: str = Field(
        default="resnet18-nam-tiny-imagenet", description="A weights file, or the name of shipped weights."
    )
    weights_sha256: str = Field(
        default="",
        pattern=r"^([0-9a-fA-F]{64})?$",
        description="The sha256 that the weights file must have, else no start; weights that ship have theirs known.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the network lives; auto takes CUDA where there is one."
    )
    engine: Literal["auto", "openvino", "torch"] = Field(
        default="auto", description="What runs the network; auto takes torch on CUDA, OpenVINO on a CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        default="auto",
        description="What the network computes in, gates always float32; auto takes bfloat16 where it is faster.",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/nam-serve"), description="Where networks exported for OpenVINO are kept."
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads of one forward; 0 shares the cores among the lanes."
    )
    lanes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Forwards in flight at a time; 0 takes one a core on a CPU, each a process, and 2 on CUDA.",
    )
    max_batch: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Images in one forward; 0 takes the engine's own: 16 on a CPU, fewer if it is large; 64 on CUDA.",
    )
    max_queue: int = Field(
        default=256, ge=1, description="Images that may wait for a forward; more are refused with 503."
    )
    max_requests: int = Field(
        default=256,
        ge=1,
        description="Requests for answers under way at a time; more are refused with 503 before their body is read.",
    )
    max_connections: int = Field(
        default=4096, ge=1, description="Connections that a process holds open; one more is closed at once."
    )
    decoders: int = Field(
        default=0, ge=0, description="Processes that decode images, the small JPEGs of a CPU apart; 0 takes one a core."
    )
    decode_timeout_ms: int = Field(
        default=15_000, ge=1, description="The longest that decoding an image may take; its decoder is killed then."
    )
    max_body_bytes: int = Field(default=20 * MIB, ge=1, description="The largest body of a request.")
    max_inflight_bytes: int = Field(
        default=256 * MIB,
        ge=1,
        description="The most bytes of bodies and of attentions held at a time; more are refused with 503.",
    )
    max_pixels: int = Field(
        default=64_000_000, ge=1, description="The most pixels of an image, read from its header before decoding."
    )
    max_images: int = Field(default=32, ge=1, description="The most images in one request to /predict/batch or /v2.")
    timeout_ms: int = Field(
        default=30_000, ge=1, description="The deadline of a request; a caller's X-Timeout-Ms may shorten it."
    )
    body_idle_ms: int = Field(
        default=10_000,
        ge=1,
        description="The longest pause in sending a body, then 408; in sending a head or reading an answer, the end.",
    )
    drain_ms: int = Field(
        default=10_000, ge=0, description="After SIGTERM, how long accepted requests may take to finish."
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Keys, separated by commas, one of which callers must send; none: open to all.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="A file of further keys, one a line, # begins a comment; read at start."
    )
    open: str = Field(
        default="page", description="What needs no key where keys are set, besides health: of page, docs, metrics."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that speak HTTP; several share one engine, in one more process, and one queue.",
    )
    host: str = Field(default="127.0.0.1", description="The address that nam serve listens on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="The port that nam serve listens on; 0 takes a free one."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )
    log_format: Literal["line", "json"] = Field(
        default="line", description="What is logged: lines for people, or a JSON object a line."
    )
    gate_sample: int = Field(
        default=0,
        ge=0,
        description="One in so many images asked for labels is looked at for nam_gate_spread; 0: only /attention's.",
    )

    @field_validator("*")
    @classmethod
    def _is_no_slip(cls, told: object) -> object:
        if isinstance(told, int) and told > _MOST:
            raise ValueError(f"at most {_MOST}")
        return told

    @field_validator("api_keys_file", mode="before")
    @classmethod
    def _is_named(cls, told: object) -> object:
        return told or None

    @field_validator("open")
    @classmethod
    def _are_doors(cls, told: str) -> str:
        if unknown := _words(told) - _DOORS:
            raise ValueError(f"{', '.join(sorted(unknown))}: only page, docs and metrics may need no key")
        return told

    @model_validator(mode="after")
    def _keys_can_be_sent(self) -> "Settings":
        """A slip must not leave a service open, nor closed to all. No key is in the words."""
        asked_for = bool(self.api_keys.get_secret_value() or self.api_keys_file)
        if asked_for and not self.keys:
            raise ValueError("keys are asked for, and there are none in api_keys or in the file of api_keys_file")
        if not all(re.fullmatch(r"[!-+\--~]+", key) for key in self.keys):
            raise ValueError("a key is of printable ASCII without spaces and commas: no header can carry another")
        return self

    def environment(self, *, keys: bool = False) -> dict[str, str]:
        """This process's environment, in which another one finds these same settings. ``keys``: these too, for those
        processes alone that ask for them: what decodes the images of strangers knows no secret."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}  # not self's: keys are there, derived
        own = {f"NAM_{name.upper()}": str(value) for name, value in fields.items() if value is not None}
        told = {"NAM_API_KEYS": self.api_keys.get_secret_value()}
        return os.environ | own | (told if keys else {"NAM_API_KEYS": "", "NAM_API_KEYS_FILE": ""})

    @property
    def open_doors(self) -> frozenset[str]:
        return _words(self.open)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Those of the environment, then those of the file. OSError where it cannot be read."""
        lines = self.api_keys_file.read_text(encoding="utf-8").splitlines() if self.api_keys_file else []
        told = [*self.api_keys.get_secret_value().split(","), *(line.partition("#")[0] for line in lines)]
        return tuple(key.strip() for key in told if key.strip())

    @cached_property
    def key_digests(self) -> tuple[bytes, ...]:
        """Of one length, so that comparing them says nothing of the keys'."""
        return tuple(hashlib.sha256(key.encode()).digest() for key in self.keys)


def _words(told: str) -> frozenset[str]:
    return frozenset(word.strip() for word in told.split(",") if word.strip())


def otel(name: str) -> str:
    """A variable of OpenTelemetry, which its SDK reads itself: only what decides whether to begin with it at all."""
    return os.environ.get(f"OTEL_{name}", "").strip()


def unknown_variables() -> list[str]:
    """Variables that begin like a setting and are none: most likely a slip of the pen."""
    known = {f"NAM_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith("NAM_") and name not in known)

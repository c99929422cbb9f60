"""Weights from elsewhere -> weights of ours: ``nam convert``.

* ``official``: a checkpoint of the NAM paper's code, with keys as ``module.layer1.0.nam.Channel_Att.bn2.weight``. The
  network is the same one, and so are its answers.
* ``torchvision``: a state dict of torchvision's ResNet or MobileNetV2. NAM is added so that the function stays, without
  any data (:func:`warm_start`): where fine-tuning begins.
* ``plain``: weights of ours without attention; the same.

A source is tensors and nothing else: pickles are read without the power to run anything, and a tensor that is missing,
unknown, misshapen or not finite is an error that names it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from nam import weights
from nam.attention import NAM, ChannelNAM, Weighting
from nam.build import Arch, Attention, Model, ModelConfig, build
from nam.files import WeightsError, file_sha256
from nam.weights import Card, Label

Kind = Literal["official", "torchvision", "plain"]
State = dict[str, Tensor]
Triple = tuple[float, float, float]

# NAM's gamma by the last batch norm's. Measured on the trained ResNet-20 of tests/golden and 2,000 photographs' parts:
# probabilities move by 4e-4 and 3e-4 at most, in proportion to the scale. Unit-mean weights are larger, by C.
SCALES: dict[Weighting, float] = {"sum-one": 1e-3, "unit-mean": 3e-5}

# What the paper's code normalises with, whichever CIFAR it trains on.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

NOTE = "warm start, attention not trained: labels are the plain network's, w_c the scales of its own batch norms"

_OURS, _OFFICIAL = ".attention.channel.bn.", ".nam.Channel_Att.bn2."
# By the number of blocks, and whether they have a third convolution.
_ARCHS: dict[tuple[int, bool], Arch] = {
    (8, False): "resnet18",
    (9, False): "resnet20",
    (16, False): "resnet34",
    (16, True): "resnet50",
    (33, True): "resnet101",
}
_OF_THE_INPUT = ("size", "crop", "mean", "std", "labels")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Conversion:
    """One conversion. ``weighting``, ``live_gradient`` and ``scale`` are of a warm start. ``size``, ``crop``, ``mean``,
    ``std`` and ``labels`` are of a source that does not say them; None takes what :func:`convert` says. ``labels``: a
    table as :func:`nam.weights.read_labels` has it, in the order of the classes. ``name``: in the card."""

    source: Path
    output: Path
    kind: Kind | Literal["auto"] = "auto"
    weighting: Weighting | None = None
    live_gradient: bool = False
    scale: float | None = None
    size: int | None = None
    crop: float | None = None
    mean: Triple | None = None
    std: Triple | None = None
    labels: Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no network can be."""
        if any(numbers is not None and len(numbers) != 3 for numbers in (self.mean, self.std)):
            raise ValueError("mean and std are three numbers each")
        if (self.size is not None and self.size < 1) or not 0 < (1.0 if self.crop is None else self.crop) <= 1:
            raise ValueError("size is 1 or more, crop above 0 and at most 1")


def convert(conversion: Conversion) -> dict[str, Any]:
    """Write ``conversion.output``; returns what the JSON line says.

    A source other than ours takes a stem of 7x7 for ImageNet's (224 px, crop 0.875, its mean and std) and one of 3x3
    for CIFAR's (32 px, no crop, the constants of the paper's code); 1000 classes for ImageNet's, else numbers. Raises
    WeightsError or ValueError for a source or an option that does not fit; then nothing is written.
    """
    state, ours = read(conversion.source)
    kind = _kind(state, ours) if conversion.kind == "auto" else conversion.kind
    model, card = _from_ours(conversion) if kind == "plain" else _from_elsewhere(conversion, kind, state)
    if kind != "official":
        model, card = _started(conversion, model, card)
    card = replace(
        card,
        name=conversion.name or conversion.output.stem,
        recipe=card.recipe | {"converted": {"kind": kind} | card.recipe.get("converted", {})},
        source=f"{conversion.source.name}, sha256 {file_sha256(conversion.source)}, {kind}",
    )
    conversion.output.parent.mkdir(parents=True, exist_ok=True)
    weights.save(conversion.output, model, card, kernels=_dtype(state))
    return {"weights": str(conversion.output), "kind": kind, "arch": card.config.arch, "classes": card.config.classes}


def read(path: Path) -> tuple[State, bool]:
    """The tensors of a safetensors file or a torch checkpoint, without DataParallel's ``module.``, and whether the file
    carries a card of ours. Raises WeightsError; OSError where there is no such file."""
    state, ours = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_checkpoint(path), False)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{path} holds numbers that are not finite: {_named(broken)}")
    return state, ours


def from_torchvision(state: State, **fields: Any) -> tuple[Model, ModelConfig]:
    """A state dict with torchvision's names (or our plain networks') -> the plain network, fp32, and its config.

    ``fields``: of the config, as ``size`` and ``mean``, where they are not those of :func:`convert`. Raises
    WeightsError that names what is missing, unknown or misshapen.
    """
    return _fitted(state, "none", fields)


def from_official(state: State, **fields: Any) -> tuple[Model, ModelConfig]:
    """The same for a state dict of the paper's code, its channel NAM included."""
    return _fitted(state, "nam", fields)


def warm_start(plain: Model, config: ModelConfig, scale: float | None = None) -> Model:
    """A copy of ``plain`` with channel NAM that computes nearly the same function: fp32, on the CPU, in eval mode.

    ``config``: that of ``plain`` with ``attention="nam"``, in either weighting. ``scale``: NAM's gamma by the gamma of
    the block's last batch norm, None for that of ``SCALES``; the function is the plain one's as far as it is small.
    Raises ValueError where ``plain`` has attention already or is not the network that ``config`` describes.
    """
    scale = SCALES[config.weighting] if scale is None else scale
    if not 0 < scale < float("inf"):
        raise ValueError(f"the scale of a warm start is above 0, not {scale:g}")
    if config.attention != "nam":
        raise ValueError(f"a warm start has channel NAM, not {config.attention}")
    if any(block.attention is not None for _, block in plain.blocks()):
        raise ValueError("a warm start begins from a network without attention")
    model = build(config)
    try:
        model.load_state_dict(model.state_dict() | plain.state_dict())
    except RuntimeError as error:
        raise ValueError("the plain network is not the one that the config describes") from error
    for _, block in model.blocks():
        _prepare(_last_norm(block), block.attention, scale)
    return model


@torch.no_grad()
def _prepare(last: nn.BatchNorm2d, attention: nn.Module | None, scale: float) -> None:
    """Double what the block's last batch norm gives, since the gate halves it, and tell NAM's of its statistics.

    The doubled output ``2 (gamma x_hat + beta)`` has mean ``2 beta`` and variance ``4 gamma^2``; less where the channel
    varies no more than that batch norm's eps, but to divide by less would make the gate of such a channel a switch.
    """
    if not (isinstance(attention, NAM) and isinstance(attention.channel, ChannelNAM)):
        raise ValueError("a warm start has channel NAM in every block")
    bn = attention.channel.bn
    known = {
        "weight": scale * last.weight.abs(),
        "bias": torch.zeros_like(last.bias),
        "running_mean": 2 * last.bias,
        "running_var": 4 * last.weight.square(),
    }
    bn.load_state_dict(bn.state_dict() | known)
    last.weight.mul_(2)
    last.bias.mul_(2)


def _last_norm(block: nn.Module) -> nn.BatchNorm2d:
    """The batch norm that ends the block's branch: the last one outside of its shortcut and its attention."""
    norms = [
        module
        for name, module in block.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.partition(".")[0] not in ("downsample", "attention")
    ]
    return norms[-1]


def _read_safetensors(path: Path) -> tuple[State, bool]:
    try:
        with safe_open(path, framework="pt") as file:
            ours = "card" in (file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, ours  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error


def _read_checkpoint(path: Path) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged or a hostile file makes of the unpickler
        raise WeightsError(f"{path} is refused: a checkpoint holds tensors and plain values, nothing else") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not (isinstance(state, dict) and state and all(_named_tensor(*item) for item in state.items())):
        raise WeightsError(f"{path} holds no state dict")
    return dict(state)


def _named_tensor(name: object, value: object) -> bool:
    """Of floating numbers, but for a batch norm's count of batches."""
    if not (isinstance(name, str) and isinstance(value, Tensor)):
        return False
    return value.is_floating_point() or name.endswith("num_batches_tracked")


def _kind(state: State, ours: bool) -> Kind:
    if ours:
        return "plain"
    return "official" if any(_OFFICIAL in name for name in state) else "torchvision"


def _started(conversion: Conversion, plain: Model, card: Card) -> tuple[Model, Card]:
    """The warm start, and the plain network's card as it goes on; its figures are not the new network's."""
    weighting = conversion.weighting or "sum-one"
    scale = SCALES[weighting] if conversion.scale is None else conversion.scale
    config = replace(card.config, attention="nam", weighting=weighting, live_gradient=conversion.live_gradient)
    recipe = card.recipe | {"converted": {"scale": scale}}
    notes = [NOTE, *card.notes]
    return warm_start(plain, config, scale), replace(card, config=config, metrics={}, recipe=recipe, notes=notes)


def _from_ours(conversion: Conversion) -> tuple[Model, Card]:
    given = [name for name in _OF_THE_INPUT if getattr(conversion, name) is not None]
    if given:
        raise ValueError(f"{conversion.source} has a card, which says {_named(given)} itself")
    return weights.load(conversion.source)


def _from_elsewhere(conversion: Conversion, kind: Kind, state: State) -> tuple[Model, Card]:
    """The network as it is, and a card of what it is."""
    if kind == "official" and (conversion.weighting, conversion.scale) != (None, None):
        raise ValueError("an official checkpoint has NAM already, with weighting sum-one; scale is for a warm start")
    fields = {name: getattr(conversion, name) for name in ("size", "mean", "std")}
    fields = {name: value for name, value in fields.items() if value is not None}
    if kind == "official":
        model, config = from_official(state, live_gradient=conversion.live_gradient, **fields)
    else:
        model, config = from_torchvision(state, **fields)
    crop = conversion.crop or (1.0 if config.stem == "cifar" else 0.875)
    return model, Card("", config, _labels(config.classes, conversion.labels), crop)


def _labels(classes: int, table: Path | None) -> list[Label]:
    if table:
        return list(weights.read_labels(table).values())
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return [Label(str(i), names[i] if classes == len(names) else str(i)) for i in range(classes)]


def _fitted(state: State, attention: Attention, fields: dict[str, Any]) -> tuple[Model, ModelConfig]:
    config = replace(_recognized(state, attention), **fields)
    model = build(config)
    shapes = {name.replace(_OURS, _OFFICIAL): tensor.shape for name, tensor in model.state_dict().items()}
    _check(state, shapes, config.arch)
    model.load_state_dict({name.replace(_OFFICIAL, _OURS): tensor for name, tensor in state.items()})
    return model, config


def _recognized(state: State, attention: Attention) -> ModelConfig:
    """The network by its blocks, its stem and its last layer; whether each tensor fits is for :func:`_check`."""
    head = state.get("fc.weight", state.get("classifier.1.weight"))
    if head is None or head.ndim != 2:
        raise WeightsError("the state dict has no last layer fc.weight or classifier.1.weight")
    blocks = {found[0] for name in state if (found := re.match(r"layer\d\.\d+\.", name))}
    deep = any(".conv3." in name for name in state)
    arch: Arch | None = "mobilenetv2" if "classifier.1.weight" in state else _ARCHS.get((len(blocks), deep))
    if arch is None:
        kind = "bottleneck" if deep else "basic"
        raise WeightsError(f"the state dict has {len(blocks)} {kind} blocks, as no network of ours")
    small = "conv1.weight" in state and state["conv1.weight"].shape[2:] == (3, 3)
    if small:
        return ModelConfig(arch, len(head), 32, attention, "cifar", mean=CIFAR10_MEAN, std=CIFAR10_STD)
    return ModelConfig(arch, len(head), 224, attention)


def _check(state: State, shapes: dict[str, torch.Size], arch: Arch) -> None:
    """Raises WeightsError that names what is missing, unknown or misshapen. Old checkpoints count no batches."""
    missing = [name for name in shapes if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in shapes]
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(shapes[name])}"
        for name, tensor in state.items()
        if shapes.get(name, tensor.shape) != tensor.shape
    ]
    faults = {"missing": missing, "unknown": unknown, "misshapen": misshapen}
    told = "; ".join(f"{fault}: {_named(names)}" for fault, names in faults.items() if names)
    if told:
        raise WeightsError(f"the state dict is no {arch}: {told}")


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _dtype(state: State) -> torch.dtype:
    """The dtype that holds every kernel and matrix of the source; fp32 where that is wider, as a network of ours is."""
    kernels = [tensor.dtype for tensor in state.values() if tensor.ndim > 1 and tensor.is_floating_point()]
    dtype = reduce(torch.promote_types, kernels)
    return torch.float32 if dtype == torch.float64 else dtype

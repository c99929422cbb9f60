"""Train a network: ``nam train``.

    nam train --data FOLDER --out runs/photo --arch resnet18 --weighting unit-mean --stages 48:10,64:6 --size 80

Images stay uint8 until a batch is cropped on the device. SGD with Nesterov momentum under one cosine with a linear
warm-up; no decay on biases and batch-norm scales; an exponential moving average of the weights is what is evaluated and
exported. Every epoch ends with a checkpoint in ``out``; the same command goes on from it, with the same random numbers.
What comes out: ``out/model.safetensors`` with its card, ``out/log.jsonl`` with a line an epoch, one JSON line last.
"""

import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from nam.build import Model, ModelConfig, build, choose_device, place
from nam.data import Split, load_split
from nam.evaluate import evaluate
from nam.transforms import cutmix, mixup, random_resized_crop
from nam.weights import Card, Label, load, read_labels, save


@dataclass(frozen=True)
class TrainConfig:
    """One run. ``stages``: (side of the training crop in px, epochs), in order; ``size``: the side that the network is
    evaluated and served at;
    ``holdout``: training images kept out and measured after every epoch, so that the validation set stays unseen."""

    data: str
    out: Path
    name: str
    model: ModelConfig
    stages: tuple[tuple[int, int], ...]
    batch: int = 128
    lr: float = 0.1
    warmup_epochs: float = 1.0
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    crop_scale: tuple[float, float] = (0.35, 1.0)
    cutmix: float = 0.0
    mixup: float = 0.0
    ema: float = 0.998
    seed: int = 0
    holdout: int = 0
    labels: Path | None = None
    device: str = "auto"
    compile: bool | None = None

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.stages)

    def side(self, epoch: int) -> int:
        """The side of the training crop in the given epoch, from 0."""
        for side, epochs in self.stages:
            if epoch < epochs:
                return side
            epoch -= epochs
        raise IndexError("the run has no such epoch")


def train(config: TrainConfig) -> dict[str, Any]:
    """Run ``config`` to its end, from its last checkpoint if there is one; returns what the JSON line says."""
    run = _Run(config)
    for epoch in range(run.done, config.epochs):
        run.epoch(epoch)
    return run.finish()


class _Run:
    """The state of a run: network, average, optimizer, and how many epochs are done."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        config.out.mkdir(parents=True, exist_ok=True)
        self.device = choose_device(config.device)
        # Kept as large as the largest crop; addressed by index, so that no copy of them is made.
        self.images = load_split(config.data, "train", max(side for side, _ in config.stages))
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        self.trained = order[config.holdout :]
        self.held_out = _held_out(config, order[: config.holdout])
        if len(self.trained) < config.batch:
            raise ValueError(f"{len(self.trained)} images to train on are less than a batch of {config.batch}")
        torch.manual_seed(config.seed)
        self.model = place(build(config.model), self.device)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        self.optimizer = torch.optim.SGD(_groups(self.model, config), config.lr, momentum=0.9, nesterov=True)
        # On the CPU compilation made the same steps slower.
        compiled = self.device.type == "cuda" if config.compile is None else config.compile
        self.step_model = torch.compile(self.model) if compiled else self.model
        self.done, self.seconds = 0, 0.0
        self._resume()

    def epoch(self, epoch: int) -> None:
        """One pass over the training images, then the checkpoint and a line in the log."""
        started = time.monotonic()
        self.model.train()
        losses = [self._step(images, labels, generator) for images, labels, generator in self._batches(epoch)]
        self.seconds += time.monotonic() - started
        line: dict[str, Any] = {
            "epoch": epoch + 1,
            "side": self.config.side(epoch),
            "loss": round(float(torch.stack(losses).mean()), 4),
        }
        if self.held_out is not None:
            line |= {"held_out": evaluate(self.average.module, self.held_out, progress=False)}
        self.done = epoch + 1
        self._checkpoint()
        with (self.config.out / "log.jsonl").open("a") as log:
            print(json.dumps(line | {"seconds": round(self.seconds)}), file=log)

    def finish(self) -> dict[str, Any]:
        """Write the averaged weights, and in their card what the written file reaches on the whole validation split."""
        path = self.config.out / "model.safetensors"
        card = _card(self.config, self.images.classes, len(self.trained), self.seconds, self.device)
        save(path, cast(Model, self.average.module), card)
        model, _ = load(path)
        val = load_split(self.config.data, "val", self.config.model.size)
        val.expect(self.images.classes)
        accuracy = evaluate(place(model, self.device), val)
        save(path, model, replace(card, metrics={"val": accuracy}))
        return {"weights": str(path), **accuracy, "epochs": self.config.epochs, "train_seconds": round(self.seconds)}

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
        order = self.trained[torch.randperm(len(self.trained), generator=generator)]
        steps = len(order) // config.batch
        for i in tqdm(range(steps), desc=f"epoch {epoch + 1}/{config.epochs} at {config.side(epoch)} px", unit="step"):
            rate = _rate(config, epoch + i / steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            chosen = order[i * config.batch : (i + 1) * config.batch]
            pixels = self.images.pixels[chosen].to(self.device, non_blocking=True)
            images = random_resized_crop(pixels, config.side(epoch), config.crop_scale, generator)
            yield images, self.images.labels[chosen].to(self.device), generator

    def _step(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        images, partner, share = self._mix(images, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.step_model(images)
        loss = share * self._loss(logits, labels)
        if share < 1:
            loss = loss + (1 - share) * self._loss(logits, labels[partner.to(labels.device)])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.detach()

    def _mix(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        config = self.config
        kinds = [(kind, alpha) for kind, alpha in ((cutmix, config.cutmix), (mixup, config.mixup)) if alpha]
        if not kinds:
            return images, torch.empty(0, dtype=torch.int64), 1.0
        kind, alpha = kinds[int(torch.randint(0, len(kinds), (1,), generator=generator))]
        return kind(images, alpha, generator)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)

    def _checkpoint(self) -> None:
        state = {
            "config": _identity(self.config),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
        }
        path = self.config.out / "last.pt"
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)

    def _resume(self) -> None:
        path = self.config.out / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != _identity(self.config):
            raise ValueError(f"{path} comes from a run with other settings: choose another --out or delete it")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds = state["done"], state["seconds"]


def _held_out(config: TrainConfig, indices: Tensor) -> Split | None:
    """The held-out images as they are served: at the model's own size."""
    if not len(indices):
        return None
    return load_split(config.data, "train", config.model.size, only=indices.tolist())


def _groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Two groups: what decays (matrices and kernels), and what does not (biases and batch-norm scales)."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate at a moment, in epochs: a linear warm-up, then one half of a cosine down to zero."""
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1e-3) / config.warmup_epochs
    done = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    return config.lr * (1 + math.cos(math.pi * done)) / 2


def _identity(config: TrainConfig) -> str:
    """What two runs must share for one to go on from the other's checkpoint."""
    fields = asdict(config)
    for free in ("data", "out", "device", "compile", "labels", "name"):
        del fields[free]
    return json.dumps(fields, sort_keys=True)


def _card(config: TrainConfig, classes: list[str], images: int, seconds: float, device: torch.device) -> Card:
    recipe = {k: v for k, v in asdict(config).items() if k not in {"data", "out", "name", "model", "labels", "device"}}
    known = read_labels(config.labels) if config.labels else {}
    return Card(
        name=config.name,
        config=config.model,
        labels=[known.get(c, Label(c, c)) for c in classes],
        recipe={
            **recipe,
            "epochs": config.epochs,
            "images": images,
            "train_seconds": round(seconds),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU",
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        },
    )

"""Train a network: ``nam train``.

    nam train --data FOLDER --out runs/photo --name photo --weighting unit-mean --stages 48:10,64:6 --size 64
    torchrun --nproc-per-node 4 --no-python nam train ...

Images stay uint8 until a batch is augmented on the device. SGD with momentum; an exponential moving average of the
weights is what is evaluated and exported. Every epoch ends with a checkpoint in ``out``; the same command goes on from
it, with the same random numbers. Under torchrun each process takes its share of every batch. What comes out:
``out/model.safetensors`` with its card, ``out/log.jsonl`` with a line an epoch, one JSON line last.
"""

import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from nam import alive, transforms
from nam.build import Model, build, place
from nam.data import Split, load_split
from nam.evaluate import cost, evaluate
from nam.files import file_sha256, locate
from nam.penalty import scales, sparsity
from nam.processes import Place, processes
from nam.recipes import TrainConfig
from nam.weights import Card, Label, load, read_labels, save


def train(config: TrainConfig) -> dict[str, Any]:
    """Run ``config`` to its end, from its last checkpoint if there is one; returns what the JSON line says.

    Every process of torchrun's runs this; the first one alone writes and measures, and the others return ``{}``.
    """
    with processes(config.device) as at:
        run = Run(config, at)
        for epoch in range(run.done, config.epochs):
            run.epoch(epoch)
        return run.finish() if at.first else {}


class Run:
    """The state of a run: network, average, optimizer, and how many epochs are done."""

    def __init__(self, config: TrainConfig, at: Place) -> None:
        self.config, self.at, self.device = config, at, at.device
        config.out.mkdir(parents=True, exist_ok=True)
        if config.batch % at.count:
            raise ValueError(f"a batch of {config.batch} is no multiple of {at.count} processes")
        self._read()
        if len(self.trained) < config.batch:
            raise ValueError(f"{len(self.trained)} images to train on are less than a batch of {config.batch}")
        torch.manual_seed(config.seed)
        self.model = place(_start(config, self.images.classes), self.device)
        self.average = _averaged(self.model, config.ema)
        self.optimizer = torch.optim.SGD(_groups(self.model, config), config.lr, 0.9, nesterov=config.nesterov)
        self.step_model = self._wrapped()
        self.done, self.seconds = 0, 0.0
        self.lines: list[dict[str, Any]] = []
        self._resume()

    @property
    def result(self) -> Model:
        """The network that is evaluated and exported: the averaged one where there is an average."""
        return self.model if self.average is None else cast(Model, self.average.module)

    def epoch(self, epoch: int) -> None:
        """One pass over the training images, then the checkpoint and a line in the log."""
        started = time.monotonic()
        # What the network itself draws (dropout), so that a run that goes on draws the same.
        torch.manual_seed(self._seed(epoch) * 1009 + self.at.rank)
        self.model.train()
        losses = [self._step(images, labels, generator) for images, labels, generator in self._batches(epoch)]
        self.seconds += time.monotonic() - started
        self.done = epoch + 1
        if self.at.first:
            self.lines.append(self._line(epoch, float(torch.stack(losses).mean())))
            self._checkpoint()

    def finish(self) -> dict[str, Any]:
        """Write the weights, and in their card what the written file reaches on the whole validation split."""
        path = self.config.out / "model.safetensors"
        card = _card(self.config, self.labels, len(self.trained), self.seconds, self.at)
        save(path, self.result, card)
        model, _ = load(path)
        accuracy = evaluate(place(model, self.device), self.val)
        measures = alive.liveness(model, self.val)
        metrics = {"val": accuracy, **({"attention": measures} if measures else {})}
        card = replace(card, metrics=metrics, notes=alive.verdict(measures))
        save(path, model, card)
        self._record(card, model)
        return {"weights": str(path), **accuracy, "epochs": self.config.epochs, "train_seconds": round(self.seconds)}

    def loss(self, images: Tensor, labels: Tensor, partner: Tensor, share: float) -> Tensor:
        """The loss of a step, (): cross entropy, mixed by ``share`` with that of each image's partner, plus eq. 4's
        term. images: fp32 (B, 3, S, S), 0 to 255; labels and partner: int64 (B,)."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.step_model(images.contiguous(memory_format=torch.channels_last)).float()
        smoothing = self.config.label_smoothing
        loss = share * F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if share < 1:
            loss = loss + (1 - share) * F.cross_entropy(logits, labels[partner], label_smoothing=smoothing)
        if self.config.penalty:
            loss = loss + self.config.penalty * sparsity(self.model)
        return loss

    def _read(self) -> None:
        """The images to train on, those held out, a few whose gates the log describes, and what only the end needs: an
        error there would come too late."""
        config = self.config
        # Kept as large as the largest crop; addressed by index, so that no copy of them is made in this memory.
        self.images = load_split(config.data, "train", max(side for side, _ in config.stages))
        self.pixels = _near(self.images.pixels, self.device)
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        self.trained = order[config.holdout :]
        self.held_out = _served(config, order[: config.holdout])
        self.looked_at = _served(config, self.trained[:256])
        self.val = load_split(config.data, "val", config.model.size)
        self.val.expect(self.images.classes)
        known = read_labels(config.labels) if config.labels else {}
        self.labels = [known.get(c, Label(c, c)) for c in self.images.classes]

    def _wrapped(self) -> nn.Module:
        """The network as a step calls it: over all processes, and compiled where that is faster."""
        model: nn.Module = self.model
        if self.at.count > 1:
            model = DistributedDataParallel(model)
        # On the CPU compilation made the same steps slower.
        compiled = self.device.type == "cuda" if self.config.compile is None else self.config.compile
        return cast(nn.Module, torch.compile(model)) if compiled else model

    def _seed(self, epoch: int) -> int:
        return self.config.seed * 100_003 + epoch

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
        """This process's share of every batch, with the generator that all its random numbers come from."""
        config, rank, count = self.config, self.at.rank, self.at.count
        seed = self._seed(epoch)
        order = self.trained[torch.randperm(len(self.trained), generator=torch.Generator().manual_seed(seed))]
        generator = torch.Generator().manual_seed(seed * 1009 + rank)
        steps = len(order) // config.batch
        what = f"epoch {epoch + 1}/{config.epochs} at {config.side(epoch)} px"
        for i in tqdm(range(steps), desc=what, unit="step", disable=not self.at.first):
            for group in self.optimizer.param_groups:
                group["lr"] = group["share"] * _rate(config, epoch + i / steps)
            chosen = order[i * config.batch : (i + 1) * config.batch][rank::count]
            pixels = self.pixels[chosen.to(self.pixels.device)].to(self.device, non_blocking=True)
            images = _augmented(pixels, config, config.side(epoch), generator)
            yield images, self.images.labels[chosen].to(self.device), generator

    def _step(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        images, partner, share = self._mix(images, generator)
        loss = self.loss(images, labels, partner.to(self.device), share)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach()

    def _mix(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        config = self.config
        options = ((transforms.cutmix, config.cutmix), (transforms.mixup, config.mixup))
        kinds = [(kind, alpha) for kind, alpha in options if alpha]
        if not kinds:
            return images, torch.empty(0, dtype=torch.int64), 1.0
        kind, alpha = kinds[int(torch.randint(0, len(kinds), (1,), generator=generator))]
        return kind(images, alpha, generator)

    def _line(self, epoch: int, loss: float) -> dict[str, Any]:
        """An epoch in the log; the loss is of the first process's share."""
        line: dict[str, Any] = {"epoch": epoch + 1, "side": self.config.side(epoch), "loss": round(loss, 4)}
        if len(self.held_out):
            line |= {"held_out": evaluate(self.result, self.held_out, progress=False)}
        return line | {"attention": alive.spread(self.result, self.looked_at.pixels), "seconds": round(self.seconds)}

    def _record(self, card: Card, model: Model) -> None:
        """The whole run in one file: what it was, where it ran, its log, what came out, what the network costs."""
        config = json.loads(_identity(self.config))
        del config["init"]  # a path of this machine; the card's recipe has its hash
        what = {"config": config, "recipe": card.recipe, "log": self.lines}
        record = {**what, "metrics": card.metrics, **cost(model, self.config.model.size)}
        (self.config.out / "record.json").write_text(json.dumps(record, default=str))

    def _checkpoint(self) -> None:
        state = {
            "config": _identity(self.config),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "lines": self.lines,
        }
        path = self.config.out / "last.pt"
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        (self.config.out / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in self.lines))

    def _resume(self) -> None:
        path = self.config.out / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != _identity(self.config):
            raise ValueError(f"{path} comes from a run with other settings: choose another --out or delete it")
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds, self.lines = state["done"], state["seconds"], state["lines"]


def _start(config: TrainConfig, classes: list[str]) -> Model:
    """The network to train: fresh, or with the weights of ``init``, but for the last layer where the classes differ."""
    model = build(config.model)
    if config.init is None:
        return model
    given, card = load(config.init)
    for field in ("arch", "stem", "attention"):
        if getattr(card.config, field) != getattr(config.model, field):
            raise ValueError(
                f"{config.init} has {field} {getattr(card.config, field)}, not {getattr(config.model, field)}"
            )
    state = given.state_dict()
    if [label.id for label in card.labels] != classes:
        fresh = model.state_dict()
        state |= {name: fresh[name] for name in state if name.startswith(("fc.", "classifier."))}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{config.init} does not fit: {error}") from error
    return model


def _averaged(model: Model, decay: float) -> AveragedModel | None:
    """An average that begins as a plain one: a short run would else export what it started from."""
    if not decay:
        return None

    def average(averaged: Any, current: Any, steps: Tensor | int) -> None:
        n = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, steps)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _near(pixels: Tensor, device: torch.device) -> Tensor:
    """The pixels on a CUDA device, where a quarter of its free memory holds them; else as they are."""
    if device.type != "cuda" or pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return pixels
    return pixels.to(device)


def _served(config: TrainConfig, indices: Tensor) -> Split:
    """Training images as they are served: at the model's own size."""
    return load_split(config.data, "train", config.model.size, only=indices.tolist())


def _augmented(pixels: Tensor, config: TrainConfig, side: int, generator: torch.Generator) -> Tensor:
    """uint8 (B, 3, P, P) -> fp32 (B, 3, side, side), 0 to 255."""
    if config.trivial_augment:
        pixels = transforms.trivial_augment(pixels, generator)
    if config.crop == "padded":
        images = transforms.padded_crop(pixels, generator)
    else:
        images = transforms.random_resized_crop(pixels, side, config.crop_scale, generator)
    return transforms.erase(images, config.erasing, generator) if config.erasing else images


def _groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Three groups: kernels and matrices, which decay; biases and batch-norm scales; NAM's gamma and lambda, whose
    learning rate is their own. ``share``: of the common learning rate."""
    attention = scales(model)
    own = {id(p) for p in attention}
    kernels = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1 and id(p) not in own]
    decay = config.weight_decay if config.decay_scales else 0.0
    return [
        {"params": kernels, "weight_decay": config.weight_decay, "share": 1.0},
        {"params": rest, "weight_decay": decay, "share": 1.0},
        {"params": attention, "weight_decay": decay, "share": config.scale_lr},
    ]


def _rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate at a moment, in epochs: a linear warm-up, then one half of a cosine down to zero, or the
    paper's steps: a fifth from 30, 60 and 80 % of the run on."""
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1e-3) / config.warmup_epochs
    if config.schedule == "steps":
        return config.lr * 0.2 ** sum(epoch >= part * config.epochs / 10 for part in (3, 6, 8))
    done = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    return config.lr * (1 + math.cos(math.pi * done)) / 2


def _identity(config: TrainConfig) -> str:
    """What two runs must share for one to go on from the other's checkpoint."""
    fields = asdict(config)
    for free in ("data", "out", "device", "compile", "labels", "name", "recipe", "source"):
        del fields[free]
    return json.dumps(fields, sort_keys=True, default=str)


def _card(config: TrainConfig, labels: list[Label], images: int, seconds: float, at: Place) -> Card:
    left_out = {"data", "out", "name", "model", "labels", "device", "source", "init"}
    recipe = {k: v for k, v in asdict(config).items() if k not in left_out}
    return Card(
        name=config.name,
        config=config.model,
        labels=labels,
        source=config.source,
        recipe={
            **recipe,
            "data": Path(config.data).name,
            "init": file_sha256(locate(config.init)) if config.init else "",
            "epochs": config.epochs,
            "images": images,
            "train_seconds": round(seconds),
            "device": _device_name(at.device),
            "processes": at.count,
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        },
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"

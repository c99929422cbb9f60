"""What a training run is, and the named settings to start from: ``nam train --recipe``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nam.build import ModelConfig

Crop = Literal["resized", "padded"]
Schedule = Literal["cosine", "steps"]


@dataclass(frozen=True)
class TrainConfig:
    """One run; the defaults are the recipe ``base``.

    ``stages``: (side of the training crop in px, epochs), in order; ``size``, in ``model``: the side that the network
    is evaluated and served at. ``batch``: of a step, over all processes. ``crop``: a random part of at least
    ``crop_scale`` of the area, resized, or the whole image padded by an eighth and cropped again; both flip.
    ``scale_lr``: the learning rate of NAM's gamma and lambda, as a multiple of the others'; ``decay_scales``: weight
    decay on biases and batch-norm scales too; ``penalty``: p of eq. 4. ``init``: weights to start from instead of
    random ones; where they know other classes, the last layer starts afresh. ``ema``: the decay, a step, of the
    averaged weights which are evaluated and exported, less while there are few steps; 0 takes the last step's.
    ``holdout``: training images kept out and measured after every epoch, so that the validation set stays unseen.
    ``recipe`` and ``source``, where the data come from and their terms: for the card.
    """

    data: str
    out: Path
    name: str
    model: ModelConfig
    stages: tuple[tuple[int, int], ...]
    batch: int = 128
    lr: float = 0.1
    schedule: Schedule = "cosine"
    warmup_epochs: float = 1.0
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_scales: bool = False
    scale_lr: float = 1.0
    penalty: float = 0.0
    label_smoothing: float = 0.1
    crop: Crop = "resized"
    crop_scale: tuple[float, float] = (0.35, 1.0)
    trivial_augment: bool = False
    erasing: float = 0.0
    cutmix: float = 0.0
    mixup: float = 0.0
    ema: float = 0.998
    seed: int = 0
    holdout: int = 0
    init: Path | None = None
    recipe: str = "base"
    source: str = ""
    labels: Path | None = None
    device: str = "auto"
    compile: bool | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what could only fail later."""
        if self.crop == "padded" and len(self.stages) > 1:
            raise ValueError("the padded crop keeps the images' size: one stage only")
        if self.penalty and not self.model.attention.startswith("nam"):
            raise ValueError(f"the sparsity penalty needs NAM: {self.model.attention} has no gamma and no lambda")
        if self.batch < 1 or self.epochs < 1:
            raise ValueError("a run has at least one epoch, and a batch at least one image")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"{self.warmup_epochs:g} epochs of warm-up leave nothing of {self.epochs}")

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


# The paper's, from its script (https://github.com/Christian-lyc/NAM): SGD 0.1 with momentum 0.9, weight decay 5e-4 on
# everything, batch 128, x0.2 at 30, 60 and 80 % of 200 epochs, crop 32 with padding 4, flip, p = 1e-4. Corrected: the
# penalty acts, on lambda too; mean and deviation are the data's own; the last epoch counts, not the best on test.
_PAPER: dict[str, Any] = {
    "epochs": 200,
    "stem": "cifar",
    "schedule": "steps",
    "warmup_epochs": 0.0,
    "nesterov": False,
    "decay_scales": True,
    "penalty": 1e-4,
    "label_smoothing": 0.0,
    "crop": "padded",
    "ema": 0.0,
}

# What carries ResNets far on small images: a long cosine, TrivialAugment (Mueller and Hutter 2021), random erasing
# (Zhong et al. 2017), mixup and CutMix by turns, averaged weights.
_STRONG: dict[str, Any] = {
    "epochs": 300,
    "warmup_epochs": 5.0,
    "trivial_augment": True,
    "erasing": 0.25,
    "cutmix": 1.0,
    "mixup": 0.2,
    "ema": 0.9998,
}

RECIPES: dict[str, dict[str, Any]] = {"base": {}, "paper": _PAPER, "strong": _STRONG}

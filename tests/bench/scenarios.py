"""What is measured: three networks, and photos as JPEGs of the size that such a network gets.

``r224`` is what most services run, ``default`` is what ours ships, ``tiny`` leaves hardly any work but the service's
own. Speed does not depend on what weights have learnt: where none are shipped they are drawn once, in ``runs/bench``.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from skimage import data

from app.settings import Settings

ROOT = Path(__file__).parent.parent.parent
CACHE = ROOT / "runs" / "bench"

# Of scikit-image's wheel, CC0 or public domain: coffee (Rachel Michetti), astronaut (NASA), chelsea (Stefan van der
# Walt), rocket (SpaceX).
PHOTOS = ("coffee", "astronaut", "chelsea", "rocket")
MIXED = ((320, 240), (500, 375), (1024, 768), (1920, 1440))


@dataclass(frozen=True)
class Scenario:
    """``model``: the fields of a ModelConfig to draw, or nothing for the shipped weights; ``size``: of the JPEGs."""

    told: str
    model: dict[str, Any]
    size: tuple[int, int]

    def weights(self) -> Path:
        """The weights file, written where it is not there yet."""
        if not self.model:
            return ROOT / "weights" / f"{Settings.model_fields['weights'].default}.safetensors"
        name = "-".join(str(self.model[part]) for part in ("arch", "size", "classes"))
        path = CACHE / f"{name}.safetensors"
        if not path.exists():
            _draw(self.model, path)
        return path


SCENARIOS = {
    "r224": Scenario(
        "ResNet-18-NAM, 224 px, 1000 classes", {"arch": "resnet18", "size": 224, "classes": 1000}, (500, 375)
    ),
    "default": Scenario("the default weights", {}, (500, 375)),
    "tiny": Scenario(
        "ResNet-20-NAM, 32 px, 100 classes",
        {"arch": "resnet20", "stem": "cifar", "size": 32, "classes": 100},
        (96, 96),
    ),
}


def jpegs(size: tuple[int, int], folder: Path, *, mixed: bool = False) -> list[Path]:
    """The photos in ``folder``, cut and resized to ``size``, or each to every size of MIXED; quality 90."""
    files = []
    for sides in MIXED if mixed else (size,):
        for name in PHOTOS:
            files.append(folder / f"{name}-{sides[0]}x{sides[1]}.jpg")
            files[-1].write_bytes(_jpeg(name, sides))
    return files


def _jpeg(name: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    photo = Image.fromarray(getattr(data, name)())
    ImageOps.fit(photo, size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=90)
    return out.getvalue()


def _draw(model: dict[str, Any], path: Path) -> None:
    import torch

    from nam.build import ModelConfig, build
    from nam.weights import Card, Label, save

    torch.manual_seed(0)
    config = ModelConfig(**model)
    labels = [Label(str(i), f"class {i}") for i in range(config.classes)]
    card = Card(path.stem, config, labels, source="drawn at random: for measuring speed alone")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save(partial, build(config), card)
    partial.rename(path)

"""Datasets as one uint8 array a split, decoded once.

Any ImageFolder (``FOLDER/<split>/<class>/<image>``, the splits ``train`` and ``val`` or ``test``) or any torchvision
dataset with a ``train`` argument (``CIFAR100``). Each image becomes its centred square at one size; the array is kept
in a cache file and read by memory map, so a second run starts at once and a set larger than the memory still trains.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nam.transforms import load_square

CACHE = Path("runs/cache")
Reader = Callable[[int], Path | Image.Image]


@dataclass(frozen=True)
class Split:
    """``pixels`` (N, 3, S, S) uint8, RGB; ``labels`` (N,) int64, an index into ``classes``."""

    pixels: Tensor
    labels: Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def expect(self, classes: list[str]) -> None:
        """Raises ValueError where these are not the split's classes, in order: its labels would mean others."""
        if self.classes != classes:
            raise ValueError(f"the data has {len(self.classes)} classes that are not the {len(classes)} of the network")


def load_split(
    source: str,
    split: str,
    size: int,
    *,
    crop: float = 1.0,
    only: Sequence[int] | None = None,
    cache: Path = CACHE,
) -> Split:
    """Decode ``source``'s ``split`` at ``size``, or read it from the cache; ``only`` some images, by index, in order.

    ``source``: a folder, or the name of a torchvision dataset, downloaded beside the cache. Raises FileNotFoundError
    where there is no such folder and no such dataset.
    """
    read, labels, classes, identity = _open(source, split, cache)
    chosen = range(len(labels)) if only is None else only
    digest = hashlib.sha256(f"{identity}|{crop}|{list(chosen)}".encode()).hexdigest()[:16]
    path = cache / f"{split}-{size}-{digest}.npy"
    if not path.exists():
        _pack(read, chosen, size, crop, path)
    # Copy on write: torch wants a writable array, and nothing is ever written back.
    pixels = torch.from_numpy(np.load(path, mmap_mode="c"))
    return Split(pixels, torch.tensor([labels[i] for i in chosen], dtype=torch.int64), classes)


def class_count(source: str, cache: Path = CACHE) -> int:
    """How many classes ``source`` has. Raises as :func:`load_split`."""
    _, _, classes, _ = _open(source, "train", cache)
    return len(classes)


def statistics(source: str, size: int, cache: Path = CACHE) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 255, over up to 10,000 training images."""
    split = load_split(source, "train", size, cache=cache)
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:10_000]
    std, mean = torch.std_mean(split.pixels[chosen].float() / 255, (0, 2, 3))
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())


def _open(source: str, split: str, cache: Path) -> tuple[Reader, Sequence[int], list[str], str]:
    folder = Path(source) / split
    if split == "val" and not folder.is_dir():
        folder = Path(source) / "test"
    if folder.is_dir():
        images = torchvision.datasets.ImageFolder(str(folder))
        return (
            lambda i: Path(images.samples[i][0]),
            images.targets,
            images.classes,
            f"{folder.resolve()} {images.samples}",
        )
    maker = getattr(torchvision.datasets, source, None)
    if maker is None:
        raise FileNotFoundError(f"{folder} is not a folder, and torchvision has no dataset {source!r}")
    images = maker(str(cache), train=split == "train", download=True)
    return lambda i: images[i][0], images.targets, images.classes, source


def _pack(read: Reader, chosen: Sequence[int], size: int, crop: float, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One a process: runs side by side may decode the same set at once.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    array = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(chosen), 3, size, size))

    def one(i: int) -> None:
        array[i] = load_square(read(chosen[i]), size, crop)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(one, range(len(chosen)))
        for _ in tqdm(jobs, total=len(chosen), desc=f"decoding {path.stem}", unit="img"):
            pass
    array.flush()
    partial.rename(path)

"""Datasets as one uint8 array a split, decoded once.

Any ImageFolder (``FOLDER/<split>/<class>/<image>``, the splits ``train`` and ``val`` or ``test``) or any torchvision
dataset with a ``train`` argument (``CIFAR100``). Each image becomes its centred square at one size; the array is kept
in a cache file and read by memory map, so a second run starts at once and a set larger than the memory still trains.
"""

import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from filelock import BaseFileLock, FileLock
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

    def labelled(self, ids: Sequence[str], names: Sequence[str]) -> tuple["Split", str]:
        """The split with a network's labels, an index into ``ids``, and how they were found: by ``id``, else by English
        ``name``, else, where the network only counts its classes and there are as many here, by their ``order``. The
        split may have fewer classes than the network. Raises ValueError where it has one that the network lacks.
        """
        for how, known in (("id", ids), ("name", names)):
            if set(self.classes) <= set(known):
                places = torch.tensor([known.index(c) for c in self.classes])
                return Split(self.pixels, places[self.labels], list(ids)), how
        if list(ids) == [str(i) for i in range(len(self.classes))]:
            return Split(self.pixels, self.labels, list(ids)), "order"
        missing = sorted(set(self.classes) - set(ids))
        raise ValueError(
            f"{len(missing)} of the data's {len(self.classes)} classes are not among the {len(ids)} of the network: "
            + ", ".join(missing[:5])
        )


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
    # Processes side by side want the same set: one of them decodes it.
    with _alone(path):
        if not path.exists():
            _pack(read, chosen, size, crop, path)
    # Copy on write: torch wants a writable array, and nothing is ever written back.
    pixels = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    return Split(pixels, torch.tensor([labels[i] for i in chosen], dtype=torch.int64), classes)


def class_count(source: str, cache: Path = CACHE) -> int:
    """How many classes ``source`` has. Raises as :func:`load_split`."""
    _, _, classes, _ = _open(source, "train", cache)
    return len(classes)


def statistics(source: str, size: int, cache: Path = CACHE) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 255, over up to 10,000 training images. A channel that
    never varies has a deviation of one step, 1/255."""
    split = load_split(source, "train", size, cache=cache)
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:10_000]
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for part in chosen.split(100):
        pixels = split.pixels[part].double() / 255
        sums += torch.stack([pixels.mean((2, 3)).sum(0), pixels.square().mean((2, 3)).sum(0)])
    mean, square = sums / len(chosen)
    std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)
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
    if not isinstance(maker, type) or "train" not in inspect.signature(maker).parameters:
        raise FileNotFoundError(f"{folder} is not a folder, and torchvision has no dataset {source!r} of this kind")
    if split not in ("train", "val", "test"):
        raise ValueError(f"torchvision's {source} has no split {split!r}")
    with _alone(cache / source):
        images = maker(str(cache), train=split == "train", download=True)
    return lambda i: images[i][0], images.targets, images.classes, source


def _alone(path: Path) -> BaseFileLock:
    """One process at a time has what is written at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def _pack(read: Reader, chosen: Sequence[int], size: int, crop: float, path: Path) -> None:
    partial = path.with_suffix(".partial")
    array = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(chosen), 3, size, size))

    def one(i: int) -> None:
        array[i] = load_square(read(chosen[i]), size, crop)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(one, range(len(chosen)))
        for _ in tqdm(jobs, total=len(chosen), desc=f"decoding {path.stem}", unit="img"):
            pass
    array.flush()
    partial.rename(path)

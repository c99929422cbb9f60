"""Pixels for training and evaluation. The crop is :mod:`nam.geometry`'s, the one that serving uses too."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from nam.geometry import crop_box


def load_square(source: Path | Image.Image, size: int, crop: float = 1.0) -> NDArray[np.uint8]:
    """The centred square of an image, RGB uint8 (3, size, size): crop box first, then one antialiased resize."""
    image = source if isinstance(source, Image.Image) else Image.open(source)
    image = image.convert("RGB")
    box = crop_box(image.width, image.height, crop)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def random_resized_crop(pixels: Tensor, size: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A random part of each image, resized and flipped at random, all in one sampling pass on the images' device.

    pixels: (B, 3, P, P) uint8 -> (B, 3, size, size) fp32, 0 to 255. The part covers ``scale`` of the area at an aspect
    of 3/4 to 4/3 (Szegedy et al. 2014). ``generator`` is the CPU's, so that every device draws the same parts.
    """
    n = len(pixels)
    area = torch.empty(n).uniform_(*scale, generator=generator)
    aspect = torch.empty(n).uniform_(-math.log(4 / 3) / 2, math.log(4 / 3) / 2, generator=generator).exp()
    width, height = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    shift = torch.empty(2, n).uniform_(-1, 1, generator=generator)
    flip = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip, shift[0] * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, shift[1] * (1 - height)
    grid = F.affine_grid(theta.to(pixels.device), [n, 3, size, size], align_corners=False)
    return F.grid_sample(pixels.float(), grid, padding_mode="reflection", align_corners=False)


def padded_crop(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image padded with black by an eighth of its side, cropped at random to its own size, and flipped at random.

    pixels: (B, 3, P, P) uint8 -> (B, 3, P, P) fp32. CIFAR's usual augmentation: 32 px with a padding of 4.
    """
    n, side = len(pixels), pixels.shape[-1]
    pad = side // 8
    shift = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    flip = torch.randint(0, 2, (n, 1), generator=generator).bool()
    along = torch.arange(side)
    rows = (shift[0] + along).to(pixels.device)
    columns = (shift[1] + torch.where(flip, along.flip(0), along)).to(pixels.device)
    images = torch.arange(n, device=pixels.device)[:, None, None]
    padded = F.pad(pixels, (pad, pad, pad, pad))
    cropped = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).float()


def trivial_augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """TrivialAugment (Mueller and Hutter 2021, arXiv 2103.10158), uint8 (B, 3, P, P): one random operation at a random
    strength. Eight neighbours in the batch share a draw: on the device an operation an image would be all overhead."""
    augment = v2.TrivialAugmentWide()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(0, 2**31, (1,), generator=generator)))
        return torch.cat([augment(part) for part in pixels.split(8)])


def erase(pixels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Random erasing (Zhong et al. 2017, arXiv 1708.04896, RE-M): of an image, with ``probability``, a box of 2 to 33 %
    of the area at an aspect of 0.3 to 3.3 becomes the batch's mean colour. pixels: fp32 (B, 3, S, S)."""
    n, side = len(pixels), pixels.shape[-1]
    area = torch.empty(n).uniform_(0.02, 0.33, generator=generator)
    aspect = torch.empty(n).uniform_(math.log(0.3), math.log(3.3), generator=generator).exp()
    height, width = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    top, left = torch.rand(2, n, generator=generator) * (1 - torch.stack([height, width]))
    chosen = torch.rand(n, generator=generator) < probability
    at = (torch.arange(side) + 0.5) / side
    inside_y = (at >= top[:, None]) & (at < (top + height)[:, None])
    inside_x = (at >= left[:, None]) & (at < (left + width)[:, None])
    box = (chosen[:, None, None] & inside_y[:, :, None] & inside_x[:, None, :])[:, None].to(pixels.device)
    return torch.where(box, pixels.mean((0, 2, 3), keepdim=True), pixels)


def cutmix(pixels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """CutMix (Yun et al. 2019): one box of every image comes from another one of the batch.

    Returns the mixed pixels, the partner of each image, int64 (B,), and the share that is left of the image itself.
    """
    partner = torch.randperm(len(pixels), generator=generator)
    side = math.sqrt(1 - _beta(alpha, generator))
    height, width = pixels.shape[-2:]
    y, x = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
    top, bottom = max(0, int(y - side * height / 2)), min(height, int(y + side * height / 2))
    left, right = max(0, int(x - side * width / 2)), min(width, int(x + side * width / 2))
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels[partner.to(pixels.device), :, top:bottom, left:right]
    return mixed, partner, 1 - (bottom - top) * (right - left) / (height * width)


def mixup(pixels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """mixup (Zhang et al. 2017): every image blended with another one of the batch; returns as :func:`cutmix`."""
    partner = torch.randperm(len(pixels), generator=generator)
    share = _beta(alpha, generator)
    return share * pixels + (1 - share) * pixels[partner.to(pixels.device)], partner, share


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha), from a generator of ours so that a resumed run repeats it."""
    seed = int(torch.randint(0, 2**31, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))

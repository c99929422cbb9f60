"""Every map that an answer has, to be compared: those that the forward gives anyway, and two that cost a backward pass.

A map here ranks pixels: fp32 (B, H, W) at the block's own size, by method and block. It is for the best label, where it
is for a label at all.
"""

import torch
from torch import Tensor

from nam.build import Model
from nam.maps import METHODS, summarize

# Method and block. Of what is no network's map there is something else in place of a block.
Key = tuple[str, str]
BACKWARD = ("gradcam", "hirescam")


def every_map(model: Model, weights: dict[str, Tensor], pixels: Tensor) -> dict[Key, Tensor]:
    """All of a network with NAM, folded or not, in eval mode. ``weights``: :func:`nam.maps.channel_weights`, which a
    folded network has no more; pixels: (B, 3, S, S)."""
    return {**forward_maps(model, weights, pixels), **gradient_maps(model, pixels)}


@torch.no_grad()
def forward_maps(model: Model, weights: dict[str, Tensor], pixels: Tensor) -> dict[Key, Tensor]:
    """The paper's ``map``, and those of :data:`nam.maps.METHODS`: what ``/attention`` answers."""
    seen, names = model.look(pixels), list(weights)
    found = {
        ("map", name): summarize(gate, weights[name].to(gate.device)).map
        for name, gate in zip(names, seen.gates, strict=True)
    }
    for method, drawn in METHODS.items():
        found |= {(method, names[i]): map_ for i, map_ in drawn(model, seen).items()}
    return found


def gradient_maps(model: Model, pixels: Tensor) -> dict[Key, Tensor]:
    """Of every block's output, and the gradient there of the best label's logit.

    ``gradcam``: features weighted by their gradients' mean over pixels (Selvaraju et al. 2017, arXiv 1610.02391, eq. 1
    and 2). ``hirescam``: weighted by the gradients themselves (Draelos and Carin 2020, arXiv 2011.08891). Both without
    the ReLU at their end, which is for the eye: it would leave the pixels that speak against the label unranked. At the
    last block of a network whose head is a linear layer behind a mean, both are the map ``class``, divided by H x W.
    """
    outputs = {}
    with torch.enable_grad():
        x = model.stem(model.normalize(pixels)).detach().requires_grad_()
        for name, block in model.blocks():
            x = outputs[name] = block(x)
        gradients = torch.autograd.grad(model.head(x).amax(1).sum(), list(outputs.values()))
    found = {}
    for (name, features), gradient in zip(outputs.items(), gradients, strict=True):
        of_channels = gradient.mean((2, 3), keepdim=True)
        found["gradcam", name] = (of_channels * features.detach()).sum(1).float()
        found["hirescam", name] = (gradient * features.detach()).sum(1).float()
    return found

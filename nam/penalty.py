"""The paper's sparsity term (eq. 4): ``p * sum |gamma| + p * sum |lambda|`` over the scales of every NAM gate.

The released code meant to add its gradient by hand, looked for the stages under ``DataParallel``, found none and never
ran. Here it is a term of the loss, over gates found by their type, so wrapping and compiling a network cannot lose it.
"""

import torch
from torch import Tensor, nn

from nam.attention import ChannelNAM, SpatialNAM


def scales(model: nn.Module) -> list[nn.Parameter]:
    """gamma, fp32 (C,), of every channel gate and lambda, fp32 (H*W,), of every spatial one, in the network's order."""
    return [module.bn.weight for module in model.modules() if isinstance(module, ChannelNAM | SpatialNAM)]


def sparsity(model: nn.Module) -> Tensor:
    """``sum |gamma| + sum |lambda|``, fp32 (): its gradient is sign(s) for each scale s, and 0 at 0.

    Raises ValueError for a network without NAM, where a penalty would do nothing.
    """
    found = scales(model)
    if not found:
        raise ValueError("the sparsity penalty needs a network with NAM: this one has no gamma and no lambda")
    return torch.stack([s.abs().sum() for s in found]).sum()

"""One process or several: where each of torchrun's works."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from nam.build import choose_device


@dataclass(frozen=True)
class Place:
    """Where a process of a run works: its device, its number and how many there are."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


@contextmanager
def processes(device: str) -> Iterator[Place]:
    """This process's place: alone, or one of those that torchrun started."""
    if not distributed.is_torchelastic_launched():
        yield Place(choose_device(device))
        return
    kind = choose_device(device).type
    if kind == "cuda":
        local = torch.device(kind, distributed.get_node_local_rank())
        torch.cuda.set_device(local)
        distributed.init_process_group("nccl", device_id=local)
    else:
        local = torch.device(kind)
        distributed.init_process_group("gloo")
    try:
        yield Place(local, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()

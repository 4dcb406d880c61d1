"""Several training processes as one: what `torchrun` starts, each on its share of the batch."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed
from torch import nn

__all__ = ["agreed", "average_gradients", "join_workers", "worker"]


def join_workers() -> None:
    """Join the other processes of a `torchrun` call; does nothing outside one."""
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


def worker() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if worker()[1] == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= worker()[1]
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def agreed(decision: bool) -> bool:
    """Return the decision of the first process, so that none waits for one that has left."""
    if worker()[1] == 1:
        return decision
    told = torch.tensor(float(decision))
    torch.distributed.broadcast(told, 0)
    return bool(told)

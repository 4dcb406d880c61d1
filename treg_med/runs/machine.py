"""What a machine offers to a run: its devices, and how much work they take at once."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from treg_med.errors import ConfigError, ResourceError

__all__ = ["chosen_devices", "default_workers", "task_slices"]

# What a worker with a prior takes, in bytes: torch, the networks and a few slices of 320 x 320.
_WORKER_BYTES = 2 << 30


def chosen_devices(device: str | None) -> tuple[str, ...]:
    """Return the devices of a choice: None is every accelerator, or the CPU; ``"cuda"`` is all of that kind.

    Raises
    ------
    ConfigError
        If there can be no such device.
    ResourceError
        If there is none here.
    """
    if device is None:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(f"cuda:{k}" for k in range(found)) or ("cpu",)
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"expected a device such as 'cpu' or 'cuda:0', got {device!r}") from error
    if kind.type != "cuda":
        return (device,)
    found = torch.cuda.device_count()
    if (kind.index or 0) >= found:
        raise ResourceError(f"expected one of {found} CUDA devices, got {device!r}; pass --device cpu")
    return (device,) if kind.index is not None else tuple(f"cuda:{k}" for k in range(found))


def default_workers(devices: Sequence[str]) -> int:
    """Return how many processes are worth having: one for each accelerator, or for each core with enough memory."""
    if devices[0] != "cpu":
        return len(devices)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, memory // _WORKER_BYTES))


def task_slices(device: str, batch: int | None) -> int:
    """Return the slices of a task: one on a CPU; several batches on an accelerator, so that reading runs ahead."""
    return 1 if device == "cpu" else 4 * (batch or 8)

"""Choosing an executor by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from treg_med.errors import ConfigError
from treg_med.runs.tasks import Executor, Factory, Slot

__all__ = ["EXECUTORS", "ExecutorKind", "make_executor"]

ExecutorKind = Literal["local", "ray"]
EXECUTORS: tuple[str, ...] = get_args(ExecutorKind)


def make_executor(
    kind: ExecutorKind,
    factory: Factory,
    *,
    devices: Sequence[str],
    workers: int,
    threads: int,
    retries: int = 1,
) -> Executor:
    """Return an executor; nothing is loaded before the first task.

    Parameters
    ----------
    kind
        ``"local"``: processes of this machine, for one worker the driver's own; ``"ray"``: actors of a cluster.
    factory
        Called once in every worker with its slot; returns the function that does a task.
    devices
        Names of torch devices, dealt to the workers in turn.
    workers
        Tasks that run at the same time.
    threads
        CPU threads per worker.
    retries
        How often a task is tried again after its worker died; an exception is never tried again.

    Raises
    ------
    ConfigError
        For an unknown kind, a number out of range, no device, a factory that cannot be sent to another process,
        or a missing Ray.
    ResourceError
        If a Ray cluster cannot be reached or has too little.
    """
    if kind not in EXECUTORS:
        raise ConfigError(f"expected an executor of {', '.join(EXECUTORS)}, got {kind!r}; name one of them")
    for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value < least:
            raise ConfigError(f"expected {name} >= {least}, got {value}; choose a larger number")
    if not devices:
        raise ConfigError("expected at least one device, got none; name one, for example 'cpu'")
    slots = [Slot(number, devices[number % len(devices)], threads) for number in range(workers)]
    if kind == "ray":
        from treg_med.runs.ray_executor import RayExecutor

        return RayExecutor(factory, slots, retries)
    if workers == 1:
        from treg_med.runs.in_process import InProcessExecutor

        return InProcessExecutor(factory, slots[0])
    from treg_med.runs.local_executor import LocalExecutor

    return LocalExecutor(factory, slots, retries)

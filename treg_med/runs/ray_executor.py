"""One actor per slot on a Ray cluster, or on this machine through Ray; needs the extra ``[distributed]``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from treg_med.runs.ray_connection import connect, import_ray, shortly
from treg_med.runs.tasks import Factory, Slot, Work
from treg_med.runs.worker import THREAD_VARIABLES, answer, prepare
from treg_med.runs.worker_pool import Lost, WorkerPool

__all__ = ["RayExecutor"]


@dataclass
class _RayWorker:
    actor: Any
    message: Any


class _Actor:
    """The process that holds what the factory made."""

    def __init__(self, threads: int) -> None:
        # Before anything imports a numerical library.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        self._work: Work | None = None

    def prepare(self, factory: bytes, slot: Slot) -> bytes:
        self._work, reply = prepare(factory, slot)
        return _dumps(reply)

    def answer(self, payload: bytes) -> bytes:
        assert self._work is not None  # noqa: S101 - the driver sends no task after a failed preparation
        return answer(self._work, payload, _dumps)


class RayExecutor(WorkerPool[_RayWorker]):
    """An `Executor` with one Ray actor per slot: a GPU and ``slot.threads`` CPUs for a CUDA slot, else the CPUs alone.

    An actor has one task in flight, no restarts and no retries of Ray's: the driver makes another actor, on any
    node, and sends the task again. Ray shows a CUDA actor one GPU, so its device is ``cuda:0`` there. What the
    factory imports must be installed on every node, in the same version. Closing kills the actors, without
    letting a task clean up.

    Parameters
    ----------
    factory
        Prepares a worker; functions of the main script are sent by value.
    slots
        Where workers compute.
    retries
        How often a task is tried again after its worker was lost.

    Raises
    ------
    ConfigError
        If Ray is missing, too old, or was imported with its authentication off; if the factory cannot be pickled.
    ResourceError
        If the cluster cannot be reached or has too few CPUs or GPUs.
    """

    def __init__(self, factory: Factory, slots: Sequence[Slot], retries: int = 1) -> None:
        self._ray = import_ray()
        super().__init__(factory, slots, retries)
        self._connected_here = connect(
            cpus=sum(slot.threads for slot in slots), gpus=sum(_needs_gpu(slot) for slot in slots)
        )

    def _start(self, slot: Slot) -> _RayWorker:
        gpu = _needs_gpu(slot)
        actor_class = self._ray.remote(_Actor).options(
            num_cpus=slot.threads, num_gpus=int(gpu), max_restarts=0, max_task_retries=0
        )
        actor = actor_class.remote(slot.threads)
        visible = replace(slot, device="cuda:0") if gpu else slot
        return _RayWorker(actor, actor.prepare.remote(self._factory, visible))

    def _pack(self, payload: Any) -> bytes:
        return _dumps(payload)

    def _is_alive(self, worker: _RayWorker) -> bool:
        # Ray tells at the next task only.
        return True

    def _send(self, worker: _RayWorker, payload: bytes) -> None:
        worker.message = worker.actor.answer.remote(payload)

    def _wait(self, workers: Sequence[_RayWorker]) -> list[tuple[_RayWorker, bytes | Lost]]:
        by_message = {worker.message: worker for worker in workers if worker.message is not None}
        ready, _ = self._ray.wait(list(by_message), num_returns=1)
        return [(by_message[message], self._receive(by_message[message])) for message in ready]

    def _receive(self, worker: _RayWorker) -> bytes | Lost:
        message, worker.message = worker.message, None
        try:
            return self._ray.get(message)
        except self._ray.exceptions.RayError as error:
            self._stop([worker])
            return Lost(f"was lost ({shortly(error)})")

    def _stop(self, workers: Sequence[_RayWorker]) -> None:
        for worker in workers:
            # Killing one that is dead already, or after the cluster has gone.
            with suppress(self._ray.exceptions.RayError, RuntimeError):
                self._ray.kill(worker.actor, no_restart=True)

    def close(self) -> None:
        """Stop the workers now and forget the queue; leave the cluster, which ends if it was started here."""
        super().close()
        if self._connected_here:
            self._ray.shutdown()
            self._connected_here = False


def _dumps(value: Any) -> bytes:
    """Pickle, what the main script or a notebook defines by value."""
    import ray.cloudpickle

    return ray.cloudpickle.dumps(value)


def _needs_gpu(slot: Slot) -> bool:
    return slot.device.startswith("cuda")

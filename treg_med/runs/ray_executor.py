"""One actor per slot on a Ray cluster, or on this machine through Ray; needs the extra ``[distributed]``."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from treg_med.errors import ConfigError, ResourceError
from treg_med.runs.tasks import Factory, Slot, Work
from treg_med.runs.worker import THREAD_VARIABLES, answer, prepare
from treg_med.runs.worker_pool import Lost, WorkerPool

__all__ = ["RayExecutor", "connect"]

_OLDEST = (2, 52)
_OBJECT_STORE_BYTES = 128 * 2**20


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
        self._ray = _import_ray()
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
            return Lost(f"was lost ({_shortly(error)})")

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


def connect(*, cpus: int, gpus: int) -> bool:
    """Connect this process to a Ray cluster with enough resources, and return whether that was needed.

    A session of this process is used as it is, then the cluster of ``RAY_ADDRESS`` or of ``ray start`` on this
    machine; else one is started for this user alone, with a token and without dashboard. ``ray.shutdown`` ends
    the connection, and the cluster if it was started here.

    Raises
    ------
    ConfigError
        If Ray is missing, too old, or was imported with its authentication off.
    ResourceError
        If the cluster cannot be reached or has too few CPUs or GPUs.
    """
    ray = _import_ray()
    connected_here = not ray.is_initialized()
    if connected_here:
        try:
            _initialise(ray, cpus, gpus)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ResourceError(
                f"expected a Ray cluster to use, got {type(error).__name__}: {_shortly(error)}; check RAY_ADDRESS and "
                "that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH holds the cluster's token, or use the local executor"
            ) from error
    there = ray.cluster_resources()
    if there.get("CPU", 0) < cpus or there.get("GPU", 0) < gpus:
        if connected_here:
            ray.shutdown()
        raise ResourceError(
            f"expected {cpus} CPUs and {gpus} GPUs for all workers, got a Ray cluster with {there.get('CPU', 0):g} and "
            f"{there.get('GPU', 0):g}; ask for fewer workers or threads, or start the other nodes first"
        )
    return connected_here


def _initialise(ray: ModuleType, cpus: int, gpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(
            num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet
        )
    except ValueError as error:
        # Only Ray knows whether `ray start` has left a cluster here; it refuses resources for one that exists.
        if "existing cluster" not in str(error):
            raise
        ray.init(**quiet)


def _import_ray() -> ModuleType:
    """Import Ray with its authentication on: it reads the mode once, at its import."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise ConfigError(
            "expected Ray for the executor 'ray', got an environment without it; "
            "pip install 'treg-med[distributed]', or use the local executor"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < _OLDEST:
        raise ConfigError(
            f"expected ray >= {_OLDEST[0]}.{_OLDEST[1]}, the first with authentication, got {found}; "
            "pip install 'treg-med[distributed]'"
        )
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ and not sys.modules["ray"].is_initialized():
        raise ConfigError(
            "expected Ray's authentication to be on, got a Ray that was imported without it; set RAY_AUTH_MODE=token "
            "before importing ray, or make the executor before it"
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A CPU worker keeps seeing what the driver sees: the default of coming versions, which warns until then.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    has_token = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not has_token and not (Path.home() / ".ray" / "auth_token").exists():
        # In the environment of this user's processes, and not in a file: Ray would write one that others can read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    return ray


def _dumps(value: Any) -> bytes:
    """Pickle, what the main script or a notebook defines by value."""
    import ray.cloudpickle

    return ray.cloudpickle.dumps(value)


def _needs_gpu(slot: Slot) -> bool:
    return slot.device.startswith("cuda")


def _shortly(error: Exception) -> str:
    """Return the one sentence that matters of messages that fill a page."""
    text = " ".join(str(error).split())
    detail = re.search(r"Worker exit detail: ([^.]+)", text)
    return detail.group(1) if detail else text[:200]

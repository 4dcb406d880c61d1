"""Slices solved side by side, as many as fit into memory, each by itself in a thread of its own.

Only one thread runs at a time, up to its next network call: solvers, operators and priors need not be safe against
each other, and the order of everything is the same in every run. When all slices wait for a network or have ended, the
calls that fit together are evaluated as one (see `treg_med.runs.batched_prior`).
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from treg_med.errors import ConfigError, ResourceError
from treg_med.priors.base import Prior
from treg_med.runs.batched_prior import (
    BatchedPrior,
    FixedChunks,
    NetworkCall,
    NetworkOutOfMemory,
    OffloadedPrior,
    answer_together,
    is_out_of_memory,
)

__all__ = ["AdaptiveBatch", "BatchedPrior", "solve_batch"]

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")
_Modes = Callable[[], Any]

#: Rows of a network evaluation on a GPU; one number for all, as rounding depends on it.
_NETWORK_BATCH = 8
# After Ctrl-C: long enough for a step of a solver, short enough for a person.
_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 2.0


class _Stopped(BaseException):
    """The run is over: unwinds a solving thread past every ``except Exception``."""


class _SolvingThread(Generic[T]):
    """A call in a thread of its own that runs only while it is told to, up to its next network call.

    Attributes
    ----------
    asked
        The network call that it waits for; None once it has ended.
    result
        What the call returned, or the exception that ended it.
    fatal
        What is to end the whole run: an exception that is no error, such as KeyboardInterrupt in a callback.
    """

    def __init__(self, call: Callable[[Any], T], prior: Prior, modes: _Modes) -> None:
        self.asked: NetworkCall | None = None
        self.result: T | Exception
        self.fatal: BaseException | None = None
        self._may_run, self._has_paused = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False
        own = BatchedPrior(prior, self._ask, self._check)
        # A thread that cannot be stopped in time must not keep the process.
        self._thread = threading.Thread(target=self._run, args=(call, own, modes), daemon=True)

    def advance(self) -> None:
        """Run it until it asks for a network or ends."""
        self.asked = None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._may_run.release()
        # A signal that reached another thread is only seen by this one when it wakes.
        while not self._has_paused.acquire(timeout=_LOOK_SECONDS):
            pass

    def stop(self, deadline: float) -> None:
        """End it at its next network call, and wait for that until `deadline` of `time.monotonic`."""
        self._stopped = True
        self._may_run.release()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _ask(self, call: NetworkCall) -> tuple[Tensor, ...]:
        self.asked = call
        self._has_paused.release()
        self._may_run.acquire()
        self._check()
        if isinstance(call.answer, Exception):
            raise call.answer
        if call.answer is None:
            raise RuntimeError("a slice was resumed before its network call was answered")
        return call.answer

    def _check(self) -> None:
        if self._stopped:
            raise _Stopped

    def _run(self, call: Callable[[Any], T], prior: Prior, modes: _Modes) -> None:
        try:
            with modes(), suppress(_Stopped):
                self.result = call(prior)
        except Exception as error:
            self.result = error
        except BaseException as error:
            self.fatal = error
        finally:
            self._has_paused.release()


def solve_batch(
    calls: Sequence[Callable[[Any], T]], prior: Prior | None, *, network_batch: int | None = None
) -> list[T | Exception]:
    """Return the results of calls that use a prior, with their network evaluations gathered.

    Each call gets a prior to work with. One that raises does not stop the others: its exception stands in its place.
    What a call computes depends on `network_batch`, not on the other calls or on their number.

    Parameters
    ----------
    calls
        One per slice; each should draw random numbers from a generator of its own only.
    prior
        The diffusion prior; None for solvers without one.
    network_batch
        Rows of every network evaluation. None evaluates each call with the rows it has, and the slices one after
        another in this thread: the same bits as without this function.

    Raises
    ------
    ConfigError
        If `network_batch` is not positive.
    KeyboardInterrupt
        After all calls were told to stop.
    """
    if prior is None or network_batch is None:
        return [_attempt(call, prior) for call in calls]
    chunks, modes = FixedChunks(network_batch), _modes_of_this_thread()
    threads = [_SolvingThread(call, prior, modes) for call in calls]
    waiting = threads
    try:
        while waiting:
            for thread in waiting:
                thread.advance()
                if thread.fatal is not None:
                    raise thread.fatal
            waiting = [thread for thread in waiting if thread.asked is not None]
            answer_together([thread.asked for thread in waiting if thread.asked is not None], prior, chunks)
    finally:
        deadline = time.monotonic() + _GRACE_SECONDS
        for thread in threads:
            thread.stop(deadline)
    return [thread.result for thread in threads]


def _attempt(call: Callable[[Any], T], prior: Prior | None) -> T | Exception:
    try:
        return call(prior)
    except Exception as error:
        return error


def _modes_of_this_thread() -> _Modes:
    """Return a context that gives another thread the GPU and the modes of torch that this one has."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    # A negative index leaves the GPU as it is.
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else -1

    @contextmanager
    def modes() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            stack.enter_context(torch.cuda.device(gpu))
            for kind, dtype in casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield

    return modes


class _Shortage(NamedTuple):
    in_network: bool
    message: str


class AdaptiveBatch:
    """How many slices are solved side by side, and what is given up when memory runs out; never steps or resolution.

    Where memory runs out in the solver of a slice, half as many slices are tried. Where it runs out in a network, its
    rows are halved as well, and only this changes the rounding of results. At one slice the networks rest in host
    memory and are on the device only while they are called. The slices that failed are then solved again from their
    beginning, and what was given up stays so.

    Parameters
    ----------
    size
        Most slices side by side; default the network batch.
    network_batch
        Rows of a network evaluation (see `solve_batch`); default 8 on a GPU. On a CPU there is none: slices are solved
        one after another, for gathering would change the rounding and at 256 x 256 pixels gains little.
    device
        Where the networks run.

    Attributes
    ----------
    size, network_batch, offloaded
        As they are now.
    events
        What was given up: ``event`` in words, ``where`` memory ran out, the allocator's ``message``, and ``batch``,
        ``network_batch`` and ``offloaded`` afterwards.

    Raises
    ------
    ConfigError
        If a size is not positive.
    """

    def __init__(
        self, size: int | None = None, *, network_batch: int | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        if network_batch is None and self.device.type != "cpu":
            network_batch = _NETWORK_BATCH
        for number in (size, network_batch):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ConfigError(f"expected a batch of at least 1, got {number!r}; leave it out for the usual one")
        self.network_batch = network_batch
        self.size = 1 if network_batch is None else size or network_batch
        self.offloaded = False
        self.events: list[dict[str, Any]] = []

    def run(
        self, items: Sequence[I], solve_one: Callable[[I, Any], T], prior: Prior | None
    ) -> list[T | Exception]:
        """Return ``solve_one(item, prior)`` of all items, or the exceptions that ended them.

        Raises
        ------
        ResourceError
            If memory does not suffice for one slice with the networks off the device.
        """
        results: dict[int, T | Exception] = {}
        while len(results) < len(items):
            chosen = [index for index in range(len(items)) if index not in results][: self.size]
            shortage = self._solve([(index, items[index]) for index in chosen], solve_one, prior, results)
            if shortage is not None:
                self._give_up_some(shortage, prior)
        return [results[index] for index in range(len(items))]

    def _solve(
        self,
        chosen: Sequence[tuple[int, I]],
        solve_one: Callable[[I, Any], T],
        prior: Prior | None,
        results: dict[int, T | Exception],
    ) -> _Shortage | None:
        """Solve some items and store the results of those for which memory sufficed."""
        seen = OffloadedPrior(prior, self.device) if self.offloaded else prior
        found = solve_batch(
            [partial(solve_one, item) for _, item in chosen], seen, network_batch=self.network_batch
        )
        shortage: _Shortage | None = None
        for (index, _), result in zip(chosen, found, strict=True):
            if isinstance(result, Exception) and is_out_of_memory(result):
                message = str(result).partition("\n")[0] or type(result).__name__
                shortage = shortage or _Shortage(isinstance(result, NetworkOutOfMemory), message)
            else:
                results[index] = result
        return shortage

    def _give_up_some(self, shortage: _Shortage, prior: Prior | None) -> None:
        before = (self.size, self.network_batch)
        if shortage.in_network and self.network_batch is not None and self.network_batch > 1:
            self.network_batch //= 2
            self.size = min(self.size, self.network_batch)
        elif self.size > 1:
            self.size //= 2
        elif self._can_offload(prior):
            self.offloaded = True
        else:
            raise ResourceError(self._refusal(shortage.message))
        # The exceptions are gone, but their tracebacks still hold the tensors of the slices in cycles.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._record(before, shortage)

    def _can_offload(self, prior: Prior | None) -> bool:
        return not self.offloaded and self.device.type != "cpu" and bool(OffloadedPrior.components(prior))

    def _record(self, before: tuple[int, int | None], shortage: _Shortage) -> None:
        changes = []
        if self.size != before[0]:
            changes.append(f"batch {before[0]} -> {self.size}")
        if self.network_batch != before[1]:
            changes.append(f"network batch {before[1]} -> {self.network_batch}")
        self.events.append(
            {
                "event": f"{', '.join(changes) or 'offload'}: out of memory",
                "where": "network" if shortage.in_network else "slice",
                "message": shortage.message,
                "batch": self.size,
                "network_batch": self.network_batch,
                "offloaded": self.offloaded,
            }
        )

    def _refusal(self, message: str) -> str:
        tried = "; ".join(event["event"] for event in self.events) or "one slice at a time"
        return (
            f"expected memory for one slice on {self.device}, got out of memory ({message}); "
            f"tried: {tried}. Use a device with more memory, or smaller images"
        )

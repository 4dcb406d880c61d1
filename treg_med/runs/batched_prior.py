"""A prior as the slices in flight see it: network calls gathered, in chunks of a fixed size, and moved where they run.

A network's rounding depends on how many rows it gets, but not on which rows stand beside each other (measured on a CPU
for the embedded prior). So gathered rows are always evaluated in chunks of one fixed size, filled up by repetition: a
result then does not depend on how many slices were in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.priors.base import Prediction, Prior

__all__ = [
    "BatchedPrior",
    "FixedChunks",
    "NetworkCall",
    "NetworkOutOfMemory",
    "OffloadedPrior",
    "answer_together",
    "is_out_of_memory",
]

# Said by allocators in a plain RuntimeError.
_ALLOCATION_FAILURES = ("can't allocate memory", "STATUS_ALLOC_FAILED")


class NetworkOutOfMemory(MemoryError):  # noqa: N818 - a signal to those who choose the sizes
    """Memory ran out inside an evaluation of a network, not inside the solver of a slice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or in the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ALLOCATION_FAILURES)


class NetworkCall:
    """What a slice asks of a network: a method of the prior, its inputs ``(n, ...)``, and in the end the answer."""

    def __init__(self, method: str, rows: tuple[Tensor, ...]) -> None:
        self.method, self.rows = method, rows
        self.answer: tuple[Tensor, ...] | Exception | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """Calls of one kind can be evaluated together."""
        return (self.method, *((row.shape[1:], row.dtype, row.device) for row in self.rows))


@dataclass(frozen=True)
class FixedChunks:
    """Evaluates a network on exactly `size` rows at a time, whatever their number.

    The last chunk is filled up with copies of its last row, and what comes of those is cut off.

    Parameters
    ----------
    size
        Rows of one evaluation.

    Raises
    ------
    ConfigError
        If the size is not a positive integer.
    """

    size: int

    def __post_init__(self) -> None:
        """Check the size."""
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(f"expected a network batch of at least 1 row, got {self.size!r}; None leaves calls alone")

    def __call__(self, network: Callable[..., Tensor | Prediction], *rows: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs ``(n, ...)`` of a network for inputs ``(n, ...)``."""
        count = len(rows[0])
        if count == self.size:
            return _columns(network(*rows))
        parts = []
        for start in range(0, count, self.size):
            chosen = torch.arange(start, start + self.size).clamp_max(count - 1)
            output = network(*(tensor.index_select(0, chosen.to(tensor.device)) for tensor in rows))
            parts.append([column[: count - start] for column in _columns(output)])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _columns(output: Tensor | Prediction) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def answer_together(calls: Sequence[NetworkCall], prior: Prior, chunks: FixedChunks) -> None:
    """Evaluate calls, those of one kind together, and give each its part of the output or the exception."""
    groups: dict[tuple[Any, ...], list[NetworkCall]] = {}
    for call in calls:
        groups.setdefault(call.kind, []).append(call)
    for group in groups.values():
        _answer(group, prior, chunks)


def _answer(group: list[NetworkCall], prior: Prior, chunks: FixedChunks) -> None:
    network = getattr(prior, group[0].method)
    # One memory layout for all: kernels, and with them rounding, are chosen by it.
    rows = [torch.cat(parts).contiguous() for parts in zip(*(call.rows for call in group), strict=True)]
    try:
        with torch.no_grad():
            outputs = chunks(network, *rows)
    except Exception as error:
        if is_out_of_memory(error):
            # The text alone is kept: the traceback would keep the memory that is missing.
            message = f"{group[0].method} of {chunks.size} rows: {error}"
            for call in group:
                call.answer = NetworkOutOfMemory(message)
        elif len(group) == 1:
            group[0].answer = error
        else:
            for call in group:
                _answer([call], prior, chunks)
        return
    lengths = [len(call.rows[0]) for call in group]
    for call, parts in zip(group, zip(*(output.split(lengths) for output in outputs), strict=True), strict=True):
        # Memory of its own, aligned as any: some transforms round by the alignment of their input.
        call.answer = tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)


class BatchedPrior:
    """A prior as one slice of a batch sees it: its network calls wait to be evaluated with those of the others.

    Calls whose inputs require gradients are evaluated at once and alone, so that each slice keeps a graph of its own;
    so are calls with options beyond the contract of `treg_med.priors.base.Prior`. Gathered ones record no graph.
    Whether a call is gathered depends on the call alone, never on the other slices. Everything else passes through.

    Parameters
    ----------
    prior
        The prior behind it.
    ask
        Waits for the answer to a network call.
    check
        Called before a call that does not wait; may raise to end the slice.
    """

    def __init__(
        self, prior: Any, ask: Callable[[NetworkCall], tuple[Tensor, ...]], check: Callable[[], None]
    ) -> None:
        self._prior, self._ask, self._check = prior, ask, check
        self.image_multiple: int = prior.image_multiple
        self.alphas_cumprod: Tensor = prior.alphas_cumprod

    def to(self, device: str | torch.device) -> BatchedPrior:
        """Move the prior behind it, where it can be moved; returns self."""
        move = getattr(self._prior, "to", None)
        if move is not None:
            move(device)
        self.alphas_cumprod = self._prior.alphas_cumprod
        return self

    def encode(self, image: Tensor) -> Tensor:
        """Return latents ``(n, c, h, w)`` of images ``(n, 1, H, W)``."""
        return self._of_one("encode", image)

    def decode(self, latent: Tensor) -> Tensor:
        """Return images ``(n, 1, H, W)`` of latents ``(n, c, h, w)``."""
        return self._of_one("decode", latent)

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Return the conditions ``(n, ...)`` of texts."""
        return self._prior.embed(text)

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Return those of the prior behind it."""
        return self._prior.text_warnings(text)

    def predict(
        self, latent: Tensor, timestep: int | Tensor, condition: Tensor, **options: Any
    ) -> Prediction:
        """Return noise and clean latent at one timestep, or at one per latent ``(n,)``."""
        special = any(value is not None for value in options.values())
        if special or len(condition) != len(latent) or _in_graph(latent, condition):
            self._check()
            return self._prior.predict(latent, timestep, condition, **options)
        steps = torch.as_tensor(timestep, device=latent.device).expand(len(latent))
        return Prediction(*self._ask(NetworkCall("predict", (latent, steps, condition))))

    def _of_one(self, method: str, rows: Tensor) -> Tensor:
        if _in_graph(rows):
            self._check()
            return getattr(self._prior, method)(rows)
        (output,) = self._ask(NetworkCall(method, (rows,)))
        return output

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._prior, name)


def _in_graph(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


class OffloadedPrior:
    """A prior whose networks rest in host memory and are on the device only while they are called.

    A network that is called in grad mode stays on the device until its next call without, as its graph needs it.

    Parameters
    ----------
    prior
        `treg_med.priors.LatentPrior`, or a prior with the components ``vae``, ``unet`` and ``text_encoder`` of one.
    device
        Where the networks are called.
    """

    def __init__(self, prior: Any, device: str | torch.device) -> None:
        self._prior, self._device = prior, torch.device(device)
        for component in self.components(prior):
            component.to("cpu")
        self.image_multiple: int = prior.image_multiple
        prior.alphas_cumprod = prior.alphas_cumprod.to(self._device)
        self.alphas_cumprod: Tensor = prior.alphas_cumprod

    @staticmethod
    def components(prior: Any) -> list[torch.nn.Module]:
        """Return the networks of a prior that can be moved."""
        found = (getattr(prior, name, None) for name in ("vae", "unet", "text_encoder"))
        return [component for component in found if isinstance(component, torch.nn.Module)]

    def to(self, device: str | torch.device) -> OffloadedPrior:
        """Return self: the networks stay where they are."""
        return self

    def encode(self, image: Tensor) -> Tensor:
        """Return latents ``(n, c, h, w)`` of images ``(n, 1, H, W)``."""
        with self._on_device("vae"):
            return self._prior.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Return images ``(n, 1, H, W)`` of latents ``(n, c, h, w)``."""
        with self._on_device("vae"):
            return self._prior.decode(latent)

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Return the conditions ``(n, ...)`` of texts."""
        texts = [text] if isinstance(text, str) else list(text)
        # Not by prior.embed, which encodes texts on the device of the resting denoiser: other bits.
        with self._on_device("text_encoder"):
            return self._prior.conditioning.embed(texts, self._device).to(self._device)

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Return those of the prior behind it."""
        return self._prior.text_warnings(text)

    def predict(
        self, latent: Tensor, timestep: int | Tensor, condition: Tensor, **options: Any
    ) -> Prediction:
        """Return noise and clean latent at one timestep, or at one per latent ``(n,)``."""
        with self._on_device("unet"):
            return self._prior.predict(latent, timestep, condition, **options)

    @contextmanager
    def _on_device(self, name: str) -> Iterator[None]:
        component = getattr(self._prior, name, None)
        if component is None:
            yield
            return
        component.to(self._device)
        try:
            yield
        finally:
            if not torch.is_grad_enabled():
                component.to("cpu")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._prior, name)

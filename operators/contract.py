"""What every operator is, linear or not: two shapes, a field, checked input, and a state that never changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.noise import white_noise_std, whitened

__all__ = ["Operator", "align_batches", "broadcast_batch", "checked_image_shape", "checked_matrix"]

_REAL_TO_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class _ImmutableAfterInit(type(torch.nn.Module)):  # type: ignore[misc]
    """Metaclass that freezes an operator once its constructor has returned."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__call__(*args, **kwargs)
        object.__setattr__(instance, "_frozen", True)
        return instance


class Operator(torch.nn.Module, metaclass=_ImmutableAfterInit):
    """A map from images ``(*batch, *domain_shape)`` to measurements ``(*batch, *range_shape)``.

    Parameters
    ----------
    domain_shape
        Trailing shape of the input, without batch.
    range_shape
        Trailing shape of the output, without batch.
    is_complex
        True for complex64/128 operators (real input is promoted), False for float32/64 operators.

    Attributes
    ----------
    image_unit
        ``"1/mm"`` where the image is an attenuation, which has no values below zero; empty where its level is that of
        the data.

    Raises
    ------
    GeometryError
        If a shape has no axis or a length below 1.
    """

    image_unit: str = ""

    def __init__(
        self, domain_shape: tuple[int, ...], range_shape: tuple[int, ...], *, is_complex: bool
    ) -> None:
        super().__init__()
        self._domain_shape = _checked_shape("domain_shape", domain_shape)
        self._range_shape = _checked_shape("range_shape", range_shape)
        self._is_complex = bool(is_complex)
        self._cache: dict[Any, Any] = {}

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """Trailing shape of the input, without batch."""
        return self._domain_shape

    @property
    def range_shape(self) -> tuple[int, ...]:
        """Trailing shape of the output, without batch."""
        return self._range_shape

    @property
    def is_complex(self) -> bool:
        """Whether the operator acts on complex tensors."""
        return self._is_complex

    @property
    def homogeneous(self) -> bool:
        """Whether A(c x) = c A(x) for every c > 0, so that measurements may be rescaled."""
        return True

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the largest gain, ``||A x - A x'|| / ||x - x'||``; the limits are for those that iterate."""
        raise NotImplementedError(f"{type(self).__name__} must implement norm")

    def start(self, y: Tensor) -> Tensor | None:
        """Return a first image of data ``(*batch, *range_shape)``; None where there is none without a solver."""
        return None

    @property
    def measured(self) -> Tensor | None:
        """Which samples are measured: bool, broadcastable to ``range_shape``; None: all of them."""
        return None

    def n_measured(self, weights: Tensor | None = None) -> int:
        """Return the number of samples of one measurement that were measured, and have a weight above zero."""
        seen = self.measured
        if weights is None:
            if seen is None:
                return math.prod(self.range_shape)
            return int(self._cached("n_measured", lambda: torch.count_nonzero(seen.expand(self.range_shape))))
        return int(torch.count_nonzero(weights > 0 if seen is None else (weights > 0) & seen))

    def noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Return `samples_noise_std`, as long as nothing better is known of the noise."""
        return self.samples_noise_std(y, weights)

    def samples_noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise level of one measurement from its samples alone: Var(y_i) = noise_std^2 / w_i.

        Differences of neighbouring samples keep the noise and little of what is smooth along the last axes. An operator
        whose samples are no image says better (the highest frequencies of a Fourier transform).

        Parameters
        ----------
        y
            Without a batch; complex samples have E|n|^2 = noise_std^2 / w.
        weights
            w, ``range_shape``; None is one for all.

        Raises
        ------
        NumericsError
            If too few neighbouring samples were measured.
        """
        seen = self.measured
        if weights is not None:
            seen = weights > 0 if seen is None else (weights > 0) & seen
        return white_noise_std(whitened(y, weights), seen)

    def facts(self) -> dict[str, Any]:
        """Return what belongs beside a result, as JSON holds it: coils, acceleration, views, arc."""
        return {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse changes after construction (train/eval mode excepted: it alters nothing)."""
        if self.__dict__.get("_frozen", False) and name != "training":
            raise AttributeError(
                f"{type(self).__name__} is immutable: build a new operator instead of setting {name!r}"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without caches."""
        return {**self.__dict__, "_cache": {}}

    def _cached(self, key: Any, build: Callable[[], Any]) -> Any:
        """Return what ``build`` made for this key; copies, pickles and moves forget it."""
        if key not in self._cache:
            self._cache[key] = build()
        return self._cache[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the buffers; a real dtype keeps complex buffers complex, of that precision."""

        def keep_complex(tensor: Tensor) -> Tensor:
            if not tensor.is_complex():
                return fn(tensor)
            return torch.view_as_complex(fn(torch.view_as_real(tensor)).contiguous())

        self._cache.clear()
        return super()._apply(keep_complex, recurse)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return a copy on another device or in another precision; this operator stays as it is."""
        twin = self._shallow_copy()
        return super(Operator, twin).to(*args, **kwargs)

    def _shallow_copy(self) -> Self:
        """Copy the operator tree but not its tensors, which are replaced and never written to."""
        twin = copy.copy(self)
        twin.__dict__["_buffers"] = dict(self._buffers)
        twin.__dict__["_modules"] = {
            name: child._shallow_copy() if isinstance(child, Operator) else copy.deepcopy(child)
            for name, child in self._modules.items()
        }
        return twin

    def _device(self) -> torch.device:
        """Return the device of the operator's buffers (CPU where it has none)."""
        return next((b.device for b in self.buffers()), torch.device("cpu"))

    def __repr__(self) -> str:
        """Return ``Name: domain -> range`` with the shapes."""
        field = "complex" if self.is_complex else "real"
        return f"{self._label()}: {field} {self.domain_shape} -> {self.range_shape}"

    def _label(self) -> str:
        return type(self).__name__

    def _checked(self, x: Tensor, shape: tuple[int, ...], role: str) -> Tensor:
        """Check trailing shape and dtype; promote real input of a complex operator."""
        if not isinstance(x, Tensor):
            raise ConfigError(f"{self._label()} expects a torch.Tensor as {role}, got {type(x).__name__}")
        if x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
            raise GeometryError(
                f"{self._label()} expects a {role} of shape (*batch, {', '.join(map(str, shape))}), "
                f"got {tuple(x.shape)}; reshape it or build the operator for this size"
            )
        if self.is_complex:
            x = x.to(_REAL_TO_COMPLEX[x.dtype]) if x.dtype in _REAL_TO_COMPLEX else x
            allowed = (torch.complex64, torch.complex128)
        else:
            allowed = (torch.float32, torch.float64)
        if x.dtype not in allowed:
            names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
            raise ConfigError(f"{self._label()} expects a {names} {role}, got {x.dtype}; convert it first")
        return x


def align_batches(first: Tensor, first_ndim: int, second: Tensor, second_ndim: int) -> tuple[Tensor, Tensor]:
    """Expand the batches of two tensors, whose last axes (so many) are no batch, to their common shape."""
    n_first, n_second = first.ndim - first_ndim, second.ndim - second_ndim
    batch = broadcast_batch(first.shape[:n_first], second.shape[:n_second])
    return first.expand(*batch, *first.shape[n_first:]), second.expand(*batch, *second.shape[n_second:])


def broadcast_batch(first: tuple[int, ...], second: tuple[int, ...]) -> torch.Size:
    """Return the common batch shape, or raise `GeometryError`."""
    try:
        return torch.broadcast_shapes(first, second)
    except RuntimeError as error:
        raise GeometryError(
            f"batch dimensions {tuple(first)} and {tuple(second)} do not broadcast; make them equal"
        ) from error


def checked_image_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return ``(H, W)`` as integers, or raise `GeometryError`."""
    values = _checked_shape("an image shape (H, W)", shape)
    if len(values) != 2:
        raise GeometryError(f"an image shape must be (H, W), got {values}")
    return values[0], values[1]


def checked_matrix(name: str, values: Tensor) -> Tensor:
    """Return a copy in double precision of a real, finite tensor of two axes, or raise."""
    matrix = torch.as_tensor(values).detach()
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise GeometryError(f"the {name} must have two axes of positive length, got {tuple(matrix.shape)}")
    if matrix.is_complex() or not bool(torch.isfinite(matrix).all()):
        raise ConfigError(f"the {name} must be real and finite, got {matrix.dtype}; check it for NaN and Inf")
    return matrix.to(torch.float64, copy=True)


def _checked_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    values = tuple(int(n) for n in shape)
    if not values or min(values) < 1:
        raise GeometryError(f"{name} must have at least one axis and positive lengths, got {values}")
    return values

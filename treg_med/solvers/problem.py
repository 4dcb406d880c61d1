"""One reconstruction in progress: data, forward model and noise in working units, and what is recorded on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treg_med.data.records import Geometry
from treg_med.errors import ConfigError
from treg_med.operators import LinearOperator, Operator

__all__ = ["Callback", "EarlyStop", "Problem", "Progress", "per_image", "plain_value", "residual_in_noise_units"]


@dataclass(frozen=True)
class Progress:
    """What a callback is told after a step.

    Parameters
    ----------
    stage
        Part of the algorithm, for example ``"complex tv"``.
    step, total
        Steps done and the largest number of steps of this stage; it may stop earlier.
    metrics
        Numbers of this step; for a batch, lists.
    """

    stage: str
    step: int
    total: int
    metrics: Mapping[str, Any]


Callback = Callable[[Progress], "bool | None"]


class EarlyStop(Exception):  # noqa: N818 - a signal, not an error
    """A callback asked for the image so far ``(*batch, H, W)``, in working units."""

    def __init__(self, image: Tensor) -> None:
        super().__init__("stopped by the callback")
        self.image = image


class Problem:
    """One reconstruction in progress, in working units.

    Attributes
    ----------
    y
        Data ``(*batch, *operator.range_shape)``, whitened and in working units.
    operator
        The forward model that goes with them; of norm one where it is linear.
    noise_std
        Noise level of ``y``, shape ``(*batch,)`` (0-d for a single image), in working units.
    scale
        Working units per raw unit of the image, shape ``(*batch,)``.
    prior, text, generator
        As given to the solver.
    geometry
        Of the measurement: which way up the image is.
    mu_water
        Attenuation of water in raw units, where the image has a Hounsfield scale.
    history, warnings, notes, nfe
        What the solver recorded: per-step entries, warnings for the user, values it chose, network
        evaluations.
    """

    def __init__(
        self,
        y: Tensor,
        operator: Operator,
        noise_std: Tensor,
        scale: Tensor,
        prior: Any = None,
        text: str | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
        geometry: Geometry | None = None,
        mu_water: float | None = None,
    ) -> None:
        self.y = y
        self.operator = operator
        self.noise_std = noise_std
        self.scale = scale
        self.prior = prior
        self.text = text
        self.generator = generator
        self.geometry = geometry
        self.mu_water = mu_water
        self.history: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.notes: dict[str, Any] = {}
        self.nfe = 0
        self._callback = callback

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of the data."""
        return tuple(self.y.shape[: self.y.ndim - len(self.operator.range_shape)])

    @property
    def linear(self) -> LinearOperator:
        """The forward model, for methods that need its adjoint.

        Raises
        ------
        ConfigError
            If it is not linear.
        """
        if isinstance(self.operator, LinearOperator):
            return self.operator
        raise ConfigError(
            f"this method solves linear systems, and {type(self.operator).__name__} is not linear; use one that "
            "follows gradients: ldps, resample, or treg with the preset 'paper-gradient'"
        )

    @property
    def is_linear(self) -> bool:
        """Whether the forward model has an adjoint."""
        return isinstance(self.operator, LinearOperator)

    @property
    def attenuation(self) -> bool:
        """Whether the image is an attenuation, which has no values below zero."""
        return bool(self.operator.image_unit)

    def residual(self, image: Tensor) -> Tensor:
        """Return the residual of ``image`` in noise units, shape ``(*batch,)``."""
        return residual_in_noise_units(self.operator, image, self.y, self.noise_std)

    def log(self, stage: str, step: int, total: int, *, image: Tensor, **metrics: Any) -> None:
        """Record a step and tell the callback; tensors become floats (0-d) or lists.

        Raises
        ------
        EarlyStop
            With the image so far, where the callback returns True. It is not asked again.
        """
        plain = {key: plain_value(value) for key, value in metrics.items()}
        self.history.append({"stage": stage, "step": step, **plain})
        if self._callback is not None and self._callback(Progress(stage, step, total, plain)) is True:
            self._callback = None
            self.warn(f"stopped by the callback after step {step} of {total} ({stage})")
            raise EarlyStop(image)

    def note(self, **values: Any) -> None:
        """Record values that the solver chose by itself; they are stored with the settings."""
        self.notes.update({key: plain_value(value) for key, value in values.items()})

    def warn(self, message: str) -> None:
        """Record a warning for the user, once."""
        if message not in self.warnings:
            self.warnings.append(message)


def per_image(value: Tensor, ndim: int = 2) -> Tensor:
    """Append ``ndim`` singleton dimensions, so that one number per batch item multiplies its image."""
    return value[(..., *([None] * ndim))]


def residual_in_noise_units(
    operator: Operator, image: Tensor, y: Tensor, noise_std: Tensor | float, weights: Tensor | None = None
) -> Tensor:
    """Return ``sqrt(sum w |A x - y|^2 / (n sigma^2))`` per batch item, n the number of measured samples.

    Parameters
    ----------
    operator
        Forward model A, which knows how many samples it measures.
    image
        ``(*batch, *operator.domain_shape)``.
    y
        ``(*batch, *operator.range_shape)``.
    noise_std
        sigma in the units of ``y``: ``E|n|^2 = sigma^2 / w`` per sample; a number or ``(*batch,)``.
    weights
        w, ``operator.range_shape``, where the operator is not already whitened by them; default one.
    """
    events = tuple(range(-len(operator.range_shape), 0))
    misfit = (operator(image) - y).abs().square()
    energy = (misfit if weights is None else misfit * weights).sum(events)
    return (energy / operator.n_measured(weights)).sqrt() / noise_std


def plain_value(value: Any) -> Any:
    """Return a tensor as floats or lists, anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    return value

"""The contract every solver keeps.

A solver is a frozen dataclass whose fields are its settings. Calling it with a measurement returns a
``Reconstruction``::

    solver(measurement, operator=None, prior=None, text=None, *, generator=None, callback=None)

A new method subclasses :class:`Solver`, names itself, and implements :meth:`Solver.solve`, which receives a
:class:`Problem` in *working units* (the data multiplied by the scale that brings the image maximum to about
one) and returns the image in those units. The problem is whitened by the statistical weights of the data, and a linear
operator is brought to unit norm, so that every solver sees ``A^H W A`` of norm one whatever the units. Checking the
input, the units, the noise level, the residual, time, memory and history are done here, once, so that every row of a
table is measured in the same way.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from treg_med.data.records import Geometry, Measurement, Reconstruction
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import (
    LinearOperator,
    Operator,
    Scaled,
)
from treg_med.operators.weighted import Weighted
from treg_med.settings import check_settings, setting

__all__ = [
    "Callback",
    "EarlyStop",
    "Problem",
    "Progress",
    "Solver",
    "check_data",
    "per_image",
    "residual_in_noise_units",
    "setting",
]

# A zero-filled image whose maximum lies outside this range says that the measurement's scale was not set.
_PLAUSIBLE_MAXIMUM = (0.1, 10.0)
# Below this fraction of the root-mean-square sample a noise level is that of float32 rounding, not of a
# scanner.
_NOISE_FLOOR = 1e-4
# A floor of a tenth of a photon keeps the logarithm of a starved ray from erring by more than about a decade, whatever
# its weight says: measured at 60 views and 2e3 to 4e3 photons, with and without readout noise.
_LARGEST_LOG_VARIANCE = 6.0
# Norms that count as one: those of coils whose maps are of unit length, whatever the mask takes away.
_UNIT_NORM_TOLERANCE = 0.05


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
        plain = {key: _plain(value) for key, value in metrics.items()}
        self.history.append({"stage": stage, "step": step, **plain})
        if self._callback is not None and self._callback(Progress(stage, step, total, plain)) is True:
            self._callback = None
            self.warn(f"stopped by the callback after step {step} of {total} ({stage})")
            raise EarlyStop(image)

    def note(self, **values: Any) -> None:
        """Record values that the solver chose by itself; they are stored with the settings."""
        self.notes.update({key: _plain(value) for key, value in values.items()})

    def warn(self, message: str) -> None:
        """Record a warning for the user, once."""
        if message not in self.warnings:
            self.warnings.append(message)


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Base of all solvers: settings are fields, presets are data, the call is the same for all.

    Class attributes
    ----------------
    name
        Public name, as in the registry.
    presets
        Named sets of settings; ``"default"`` always exists.
    needs_prior
        Whether :meth:`solve` uses ``problem.prior``.
    stochastic
        Whether the result depends on the generator, so that averaging samples makes sense.
    volumes
        Whether images may have other than two dimensions, as those of a cone beam.
    weighted
        Whether the solver uses the statistical weights of the data; if not, it takes all measured samples as equal.
    renamed
        Settings by the names that they had until version 0.1, which still work, with a warning.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    needs_prior: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    volumes: ClassVar[bool] = False
    weighted: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        """Check every setting."""
        check_settings(self)

    @classmethod
    def from_preset(cls, preset: str = "default", **settings: Any) -> Self:
        """Build the solver from a preset, overridden by named settings.

        Raises
        ------
        ConfigError
            For an unknown preset or setting, or a value out of range.
        """
        if preset not in cls.presets:
            known = ", ".join(cls.presets)
            raise ConfigError(f"solver {cls.name!r}: expected a preset among {known}; got {preset!r}")
        for old in cls.renamed.keys() & settings.keys():
            warnings.warn(
                f"the setting {old!r} of solver {cls.name!r} is now called {cls.renamed[old]!r}",
                DeprecationWarning,
                stacklevel=2,
            )
            settings[cls.renamed[old]] = settings.pop(old)
        known_settings = [entry.name for entry in dataclasses.fields(cls)]
        for key in settings:
            if key not in known_settings:
                listing = ", ".join(known_settings) or "none"
                raise ConfigError(f"solver {cls.name!r} has no setting {key!r}; it has: {listing}")
        return cls(**{**cls.presets[preset], **settings})

    @abstractmethod
    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units."""

    def __call__(
        self,
        measurement: Measurement,
        operator: Operator | None = None,
        prior: Any = None,
        text: str | None = None,
        *,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Reconstruction:
        """Reconstruct a measurement.

        Parameters
        ----------
        measurement
            Data in raw units, shape ``(*batch, *operator.range_shape)``.
        operator
            Forward model; default that of the measurement.
        prior
            Diffusion prior, for solvers that need one.
        text
            Prompt; ``None`` is the empty prompt.
        generator
            The only source of randomness.
        callback
            Called with a :class:`Progress` after every logged step; returning True ends the work with the image so
            far, an exception ends it without.

        Returns
        -------
        Reconstruction
            Image in raw units, residual ``sqrt(sum w |A x - y|^2 / (n sigma^2))`` (root mean square over a
            batch) whether or not the solver uses the weights w, and what was done.

        Raises
        ------
        GeometryError
            If the data do not have the operator's range shape.
        NumericsError
            If the data or the result are not finite.
        ConfigError
            If the solver needs a prior and none is given, or a linear operator and it is not.
        """
        if self.needs_prior and prior is None:
            raise ConfigError(f"solver {self.name!r} needs a prior; pass prior=LatentPrior.from_pretrained()")
        domain = (measurement.operator if operator is None else operator).domain_shape
        if len(domain) != 2 and not self.volumes:
            raise ConfigError(
                f"solver {self.name!r} reconstructs images (H, W), and this operator has {tuple(domain)}; "
                "use fbp, sirt or cgls"
            )
        device = measurement.y.device
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        weights = measurement.weights
        # Autocast is for networks: rounded physics would be another measurement.
        exact: AbstractContextManager[Any] = nullcontext()
        if not self.needs_prior:
            exact = torch.autocast(device.type, enabled=False)
        with torch.no_grad(), exact:
            problem, noise = _problem(measurement, operator, prior, text, generator, callback, self.weighted)
            try:
                image = self.solve(problem)
            except EarlyStop as stop:
                image = stop.image
            if self.weighted or weights is None:
                residual = problem.residual(image)
            else:
                forward = measurement.operator if operator is None else operator
                raw = image / per_image(problem.scale, len(domain))
                residual = residual_in_noise_units(forward, raw, measurement.y, noise, weights)
        if not bool(torch.isfinite(torch.view_as_real(image) if image.is_complex() else image).all()):
            raise NumericsError(
                f"solver {self.name!r}: expected a finite image, got NaN or Inf; "
                "lower the weights or check the scale of the data"
            )
        with torch.no_grad():
            distance = self._domain_distance(problem, image)
        if cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        problem.history.append({"stage": "final", "step": 0, "residual": _plain(residual)})
        return Reconstruction(
            image=image / per_image(problem.scale, len(domain)),
            residual=float(residual.square().mean().sqrt()),
            nfe=problem.nfe,
            seconds=seconds,
            peak_memory_mb=_peak_memory_mb(device),
            solver=self.name,
            text=text,
            seed=None if generator is None else int(generator.initial_seed()),
            settings={**dataclasses.asdict(self), **problem.notes},
            history=problem.history,
            warnings=tuple(problem.warnings),
            measurement=measurement,
            domain_distance=distance,
        )

    def _domain_distance(self, problem: Problem, image: Tensor) -> float | None:
        """Return how far the image lies from the prior's domain; None where no prior had a say, or none knows it."""
        if not (self.needs_prior and getattr(self, "use_prior", True)):
            return None
        # That module needs this one.
        from treg_med.solvers.domain import domain_distance

        return domain_distance(problem, image)


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


def _problem(
    measurement: Measurement,
    operator: Operator | None,
    prior: Any,
    text: str | None,
    generator: torch.Generator | None,
    callback: Callback | None,
    weighted: bool,
) -> tuple[Problem, Tensor]:
    """Check the measurement and bring it to working units; also return the noise level in raw units."""
    operator = measurement.operator if operator is None else operator
    y = measurement.y
    check_data(y, operator)
    messages: list[str] = []
    events = len(operator.range_shape)
    batch = y.shape[: y.ndim - events]
    _norm(operator)
    noise = _noise_std(measurement, operator, messages)
    weights = measurement.weights
    y, operator, level = _whitened(y, operator, weights, noise, weighted)
    rms = y.abs().square().sum(tuple(range(-events, 0))).div(operator.n_measured()).sqrt()
    floor = _NOISE_FLOOR * rms
    if bool((level < floor).any()):
        messages.append(
            f"noise_std is below {_NOISE_FLOOR:g} of the root-mean-square sample; "
            "that fraction was used instead as the noise unit"
        )
        noise, level = torch.maximum(noise, floor), torch.maximum(level, floor)
    y, operator, level = _of_unit_norm(y, operator, level)
    scale = _working_scale(measurement, y, operator, messages).expand(batch)
    problem = Problem(
        y=y * per_image(scale, events),
        operator=operator,
        noise_std=level.expand(batch) * scale,
        scale=scale,
        prior=prior,
        text=text,
        generator=generator,
        callback=callback,
        geometry=measurement.geometry,
        mu_water=measurement.mu_water,
    )
    for message in (*measurement.warnings, *messages):
        problem.warn(message)
    problem.note(noise_std=noise.expand(batch), scale=problem.scale)
    return problem, noise


def _whitened(
    y: Tensor, operator: Operator, weights: Tensor | None, noise: Tensor, weighted: bool
) -> tuple[Tensor, Operator, Tensor]:
    """Return data, operator and noise level as whitened by the weights, or by none but those of missing samples."""
    if weights is None:
        return y, operator, noise
    if not isinstance(operator, LinearOperator):
        raise ConfigError(
            f"expected a linear operator for data with statistical weights, got {type(operator).__name__}; "
            "leave the weights out"
        )
    weights = weights.to(y.real.dtype)
    measured = weights > 0
    if not weighted:
        variances = noise[..., None].square() / weights[measured]
        if operator.image_unit:
            variances = variances.clamp_max(_LARGEST_LOG_VARIANCE)
        noise = variances.mean(-1).sqrt()
        if bool(measured.all()):
            return y, operator, noise
        weights = measured.to(y.real.dtype)
    return y * weights.sqrt(), Weighted(operator, weights), noise


def _of_unit_norm(y: Tensor, operator: Operator, noise: Tensor) -> tuple[Tensor, Operator, Tensor]:
    """Divide data, linear operator and noise level by its norm; one within a twentieth of one is left as it is."""
    if not isinstance(operator, LinearOperator):
        return y, operator, noise
    norm = _norm(operator)
    if abs(norm - 1) <= _UNIT_NORM_TOLERANCE:
        return y, operator, noise
    return y / norm, Scaled(operator, 1 / norm), noise / norm


def _norm(operator: Operator) -> float:
    """Return the norm of an operator, a scale that need not be exact, or raise where nothing can be done with it."""
    norm = operator.norm(max_iter=30, rtol=1e-3)
    if not (math.isfinite(norm) and norm > 0):
        raise GeometryError(
            f"expected an operator with a norm above zero, got {norm:g} from {operator!r}: it must pass something of "
            "the image and nothing that is not finite; check its geometry"
        )
    return norm


def check_data(y: Tensor, operator: Operator) -> None:
    """Refuse data that do not fit the operator, are not finite or hold only zeros.

    Raises
    ------
    GeometryError
        For a wrong or empty shape.
    NumericsError
        For NaN, Inf, or a batch item of zeros.
    """
    shape = tuple(operator.range_shape)
    if y.ndim < len(shape) or tuple(y.shape[y.ndim - len(shape) :]) != shape or y.numel() == 0:
        raise GeometryError(
            f"expected data of shape (*batch, {', '.join(map(str, shape))}) as the operator gives, "
            f"got {tuple(y.shape)}; build the operator for this data"
        )
    finite = torch.isfinite(torch.view_as_real(y) if y.is_complex() else y)
    if not bool(finite.all()):
        bad = int(finite.numel() - finite.sum())
        raise NumericsError(
            f"expected finite data, got {bad} NaN or Inf values among {finite.numel()}; "
            "mask those samples out or read the file again"
        )
    if not bool((y != 0).flatten(-len(shape)).any(-1).all()):
        raise NumericsError("expected data with signal, got only zeros; check the file and the mask")


def _noise_std(measurement: Measurement, operator: Operator, messages: list[str]) -> Tensor:
    """Return the noise level in raw units, estimated where the measurement does not know it."""
    y = measurement.y
    if measurement.noise_std is not None:
        return torch.as_tensor(float(measurement.noise_std), dtype=y.abs().dtype, device=y.device)
    batch = y.shape[: y.ndim - len(operator.range_shape)]
    # One estimate per item: a result must not depend on its neighbours.
    values = [_estimated_noise(operator, item, measurement.weights) for item in y.reshape(-1, *operator.range_shape)]
    estimate = torch.tensor(values, device=y.device, dtype=y.abs().dtype).reshape(batch)
    shown = ", ".join(f"{value:.4g}" for value in estimate.flatten().tolist())
    messages.append(f"noise_std was not given; estimated from the data as {shown} (raw units)")
    return estimate


def _estimated_noise(operator: Operator, y: Tensor, weights: Tensor | None) -> float:
    answer: Any = operator.noise_std(y, weights)
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    if isinstance(answer, Tensor) or not (math.isfinite(answer) and answer >= 0):
        got = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"{answer}"
        raise ConfigError(
            f"expected {type(operator).__name__}.noise_std(y) to return one number >= 0, got {got}; "
            "give the measurement its noise_std"
        )
    return float(answer)


def _working_scale(measurement: Measurement, y: Tensor, operator: Operator, messages: list[str]) -> Tensor:
    """Return the factor from raw to working units; from the data where the given one is implausible."""
    scale = float(measurement.scale)
    start = operator.start(y)
    if start is None:
        if scale != 1 and not operator.homogeneous:
            raise ConfigError(
                f"expected a measurement of scale 1 for {type(operator).__name__}, which knows absolute levels, got "
                f"{scale:g}; build the operator for images with a maximum of about one"
            )
        return torch.full(y.shape[: y.ndim - len(operator.range_shape)], scale, dtype=y.dtype, device=y.device)
    peak = start.abs().flatten(-len(operator.domain_shape)).amax(-1)
    given = torch.full_like(peak, scale)
    low, high = _PLAUSIBLE_MAXIMUM
    implausible = ((peak * scale < low) | (peak * scale > high)) & (peak > 0)
    if bool(implausible.any()):
        messages.append(
            f"the measurement's scale {scale:g} does not bring the image maximum to about 1; "
            "it was set from a first image"
        )
    return torch.where(implausible, 1.0 / peak.clamp_min(torch.finfo(peak.dtype).tiny), given)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    return value


def _peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: allocated by torch on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # not available on Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

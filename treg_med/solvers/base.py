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
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from treg_med.data.records import Measurement, Reconstruction
from treg_med.errors import ConfigError, NumericsError
from treg_med.operators import Operator
from treg_med.settings import check_settings, setting
from treg_med.solvers.domain import domain_distance
from treg_med.solvers.problem import (
    Callback,
    EarlyStop,
    Problem,
    per_image,
    plain_value,
    residual_in_noise_units,
)
from treg_med.solvers.working_units import problem_of

__all__ = ["Solver", "setting"]


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
            problem, noise = problem_of(measurement, operator, prior, text, generator, callback, self.weighted)
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
        problem.history.append({"stage": "final", "step": 0, "residual": plain_value(residual)})
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
        return domain_distance(problem, image)


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

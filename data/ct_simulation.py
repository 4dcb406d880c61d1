"""Simulated CT scans of attenuation images: rays finer than the bins, photon and readout noise.

    I_k = i0 mean_m exp(-p_km),  counts_k = Poisson(I_k) + N(0, electronic_std^2),  p_km = integral of mu along ray m

Two sub-rays per bin, averaged as intensities, along lines (Joseph), where the reconstruction has one line integral per
bin averaged over strips: the model that made the data is not the one that explains them. It is still a simulation, and
said to be one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from treg_med.data.sampling import child_generator
from treg_med.errors import ConfigError
from treg_med.operators.counts import log_transform, simulate_counts
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.fan_beam import FanBeamCT
from treg_med.operators.hounsfield_units import MU_WATER
from treg_med.operators.parallel_beam import ParallelBeamCT

__all__ = ["BEAMS", "CTSimulation", "SimulatedProjections"]

#: Beams that can be simulated.
BEAMS = ("parallel", "fan")
_SUB_RAYS = 2
_MOST_VIEWS = 20_000
# A clinical scanner: distance of the focus to the axis and of the axis to the detector in mm.
_SOURCE_ORIGIN, _ORIGIN_DETECTOR = 595.0, 490.6


@dataclass(frozen=True)
class SimulatedProjections:
    """Line integrals (views, bins), their inverse variance and counts (None without noise), and starved rays."""

    sinogram: Tensor
    inverse_variance: Tensor | None
    counts: Tensor | None
    starved: int


@dataclass(frozen=True)
class CTSimulation:
    """Settings of a simulated scan.

    Parameters
    ----------
    views
        Number of views, spread evenly over the arc.
    arc
        Arc of the views in degrees; default half a turn for a parallel beam, a full turn for a fan beam.
    photons
        Photons per ray without an object (i0); None for a scan without noise.
    electronic_std
        Standard deviation of the readout noise, in photons.
    beam
        One of `BEAMS`; the fan has 595 mm from the source to the axis, 490.6 mm from there to a flat detector.
    seed
        Seed of the noise; a slice does not depend on which others are made.
    mu_water
        Attenuation of water in 1/mm, which turns Hounsfield units into attenuation.

    Raises
    ------
    ConfigError
        For values that cannot be used.
    """

    views: int = 60
    arc: float | None = None
    photons: float | None = 1e5
    electronic_std: float = 0.0
    beam: str = "parallel"
    seed: int = 0
    mu_water: float = MU_WATER

    def __post_init__(self) -> None:
        if isinstance(self.views, bool) or not isinstance(self.views, int) or not 1 <= self.views <= _MOST_VIEWS:
            raise ConfigError(f"expected 1 to {_MOST_VIEWS} views, got {self.views!r}")
        if self.arc is not None and not (_is_number(self.arc) and 0 < self.arc <= 360):
            raise ConfigError(f"expected an arc above 0 and up to 360 degrees, got {self.arc!r}")
        if self.photons is not None and not (_is_number(self.photons) and self.photons >= 1):
            raise ConfigError(
                f"expected at least 1 photon per ray, or None (--photons 0) for no noise, got {self.photons!r}"
            )
        if not (_is_number(self.electronic_std) and self.electronic_std >= 0):
            raise ConfigError(f"expected electronic_std >= 0 in photons, got {self.electronic_std!r}")
        if self.photons is None and self.electronic_std > 0:
            raise ConfigError(
                f"expected photons beside electronic_std={self.electronic_std:g}, got a scan without noise; give the "
                "number of photons, or leave out electronic_std"
            )
        if self.beam not in BEAMS:
            raise ConfigError(f"expected a beam out of {', '.join(BEAMS)}, got {self.beam!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"expected an integer seed, got {self.seed!r}")
        if not (_is_number(self.mu_water) and 0.001 <= self.mu_water < 0.1):
            raise ConfigError(
                f"expected mu_water in 1/mm between 0.001 and 0.1 (water at 70 keV: {MU_WATER}), got "
                f"{self.mu_water!r}; "
                "divide a value in 1/cm by 10"
            )

    def options(self) -> dict[str, Any]:
        """Return the settings as keywords."""
        return asdict(self)

    def angles(self) -> Tensor:
        """Return the angles of the views (views,) in rad, the first at 0."""
        arc = (180.0 if self.beam == "parallel" else 360.0) if self.arc is None else self.arc
        return torch.arange(self.views, dtype=torch.float64) * math.radians(arc) / self.views

    def operator(self, shape: tuple[int, int], pixel_size: float) -> CTOperator:
        """Return the projector of images (H, W) with pixels of that many mm; its detector sees the whole image."""
        bins, bin_size = self._detector(shape, pixel_size)
        return self._projector(shape, pixel_size, bins, bin_size, None)

    def _detector(self, shape: tuple[int, int], pixel_size: float) -> tuple[int, float]:
        """Return the number of bins, odd, and their size: one pixel at the axis."""
        radius = math.hypot(*shape) / 2
        if self.beam == "parallel":
            return 2 * math.ceil(radius) + 1, pixel_size
        magnification = (_SOURCE_ORIGIN + _ORIGIN_DETECTOR) / _SOURCE_ORIGIN
        sine = min(0.9, radius * pixel_size / _SOURCE_ORIGIN)
        # The outermost ray touches the circle about the image: its distance on a detector at the axis is R tan(gamma).
        reach = _SOURCE_ORIGIN * math.tan(math.asin(sine)) / pixel_size
        return 2 * math.ceil(reach) + 1, pixel_size * magnification

    def _projector(
        self, shape: tuple[int, int], pixel_size: float, bins: int, bin_size: float, mode: str | None
    ) -> CTOperator:
        lengths: dict[str, Any] = {"pixel_size": pixel_size, "bin_size": bin_size}
        if mode is not None:
            lengths["mode"] = mode
        if self.beam == "parallel":
            return ParallelBeamCT(shape, self.angles(), bins, **lengths)
        lengths |= {"source_origin": _SOURCE_ORIGIN, "origin_detector": _ORIGIN_DETECTOR}
        return FanBeamCT(shape, self.angles(), bins, **lengths)

    def fine_operator(self, shape: tuple[int, int], pixel_size: float) -> CTOperator:
        """Return the projector along the sub-rays: lines, two to a bin."""
        bins, bin_size = self._detector(shape, pixel_size)
        return self._projector(shape, pixel_size, _SUB_RAYS * bins, bin_size / _SUB_RAYS, "joseph")

    def describe(self) -> dict[str, Any]:
        """Return what was done, for header, file and sidecar."""
        facts = {k: v for k, v in self.options().items() if k != "arc"}
        return {"operation": "simulate CT", **facts, "arc_deg": arc_degrees(self.angles()), "sub_rays": _SUB_RAYS}

    def slice(self, image: Tensor, index: int, fine: CTOperator) -> SimulatedProjections:
        """Simulate one slice.

        Parameters
        ----------
        image
            (H, W) float32 attenuation in 1/mm.
        index
            Slice number: the key of its noise.
        fine
            From `fine_operator`.
        """
        rays = fine(image).double()
        intensity = torch.exp(-rays).reshape(rays.shape[0], -1, _SUB_RAYS).mean(-1)
        clean = -intensity.log()
        if self.photons is None:
            return SimulatedProjections(clean, None, None, 0)
        generator = child_generator(self.seed, "ct noise", index)
        counts = simulate_counts(clean, self.photons, electronic_std=self.electronic_std, generator=generator)
        log = log_transform(counts, self.photons, electronic_std=self.electronic_std)
        return SimulatedProjections(log.sinogram, log.weights, counts, log.starved)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

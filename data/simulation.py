"""Simulated Cartesian k-space of magnitude images: coils, a smooth phase, undersampling and noise.

    x = |image| exp(i phi),  y_c = M (F S_c x + n_c),  E|n_c|^2 = (noise * peak)^2 per sample

with ``peak`` the largest value of the whole volume, so that ``noise`` is in units of an image of maximum 1
and equal in all slices.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from treg_med.data.sampling import MASK_KINDS, child_generator, make_mask
from treg_med.errors import ConfigError
from treg_med.operators import CartesianMRI, SamplingMask, birdcage_maps, complex_gaussian_noise

__all__ = ["PHASES", "KspaceSimulation", "SimulatedSlice", "smooth_phase"]

#: ``smooth``: a random quadratic phase, as receive and field inhomogeneity make; ``none``: a real image,
#: easier than any measurement.
PHASES = ("smooth", "none")
_MOST_COILS = 256
# Largest phase of each term at the edge of the image, in rad.
_PHASE_RANGE = 1.2


@dataclass(frozen=True)
class SimulatedSlice:
    """K-space (coils, H, W), maps (coils, H, W) or None for one coil, and the complex image (H, W)."""

    kspace: Tensor
    maps: Tensor | None
    target: Tensor


@dataclass(frozen=True)
class KspaceSimulation:
    """Settings of a simulated scan.

    Parameters
    ----------
    acceleration
        Undersampling asked for, >= 1.
    mask
        Pattern, one of `MASK_KINDS`; the same in every slice.
    coils
        Receive coils; more than one have birdcage maps.
    noise
        Standard deviation of the complex noise per sample, as a fraction of the largest image value.
    seed
        Seed of mask, phase and noise; a slice does not depend on which others are made.
    phase
        One of `PHASES`.

    Raises
    ------
    ConfigError
        For values that cannot be used.
    """

    acceleration: float = 4.0
    mask: str = "random"
    coils: int = 1
    noise: float = 0.01
    seed: int = 0
    phase: str = "smooth"

    def __post_init__(self) -> None:
        if self.mask not in MASK_KINDS:
            raise ConfigError(f"expected a mask out of {', '.join(MASK_KINDS)}, got {self.mask!r}")
        if self.phase not in PHASES:
            raise ConfigError(f"expected a phase out of {', '.join(PHASES)}, got {self.phase!r}")
        if (
            isinstance(self.coils, bool)
            or not isinstance(self.coils, int)
            or not 1 <= self.coils <= _MOST_COILS
        ):
            raise ConfigError(f"expected 1 to {_MOST_COILS} coils, got {self.coils!r}")
        if not (isinstance(self.noise, int | float) and math.isfinite(self.noise) and self.noise >= 0):
            raise ConfigError(f"expected noise >= 0 as a fraction of the image maximum, got {self.noise!r}")
        if not isinstance(self.seed, int):
            raise ConfigError(f"expected an integer seed, got {self.seed!r}")

    def options(self) -> dict[str, Any]:
        """Return the settings as keywords."""
        return asdict(self)

    def make_mask(self, shape: tuple[int, int]) -> SamplingMask:
        """Return the sampling pattern of every slice."""
        return make_mask(self.mask, shape, self.acceleration, child_generator(self.seed, "mask"))

    def describe(self, mask: SamplingMask) -> dict[str, Any]:
        """Return what was done, for header, file and sidecar."""
        maps = "birdcage" if self.coils > 1 else "none"
        true = {"true_acceleration": mask.acceleration, "maps": maps}
        return {"operation": "simulate", **self.options(), **true}

    def slice(self, image: Tensor, index: int, mask: SamplingMask, peak: float) -> SimulatedSlice:
        """Simulate one slice.

        Parameters
        ----------
        image
            (H, W) float32 magnitude.
        index
            Slice number: the key of its noise.
        mask
            From `make_mask`.
        peak
            Largest value of the whole volume.
        """
        shape = (image.shape[0], image.shape[1])
        target = image.to(torch.complex64)
        if self.phase == "smooth":
            # One phase for the scan, as a magnet has one field.
            target = target * torch.polar(
                torch.ones(shape), smooth_phase(shape, child_generator(self.seed, "phase"))
            )
        maps = birdcage_maps(self.coils, shape) if self.coils > 1 else None
        kspace = CartesianMRI(mask.mask, maps).forward(target)
        if self.noise > 0:
            noise = complex_gaussian_noise(
                tuple(kspace.shape), self.noise * peak, child_generator(self.seed, "noise", index)
            )
            kspace = torch.where(mask.mask, kspace + noise, torch.zeros((), dtype=kspace.dtype))
        return SimulatedSlice(kspace, maps, target)


def smooth_phase(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return a random phase (H, W) in rad: sum of c_ab r^a s^b, a + b <= 2, r and s from -1 to 1."""
    rows = torch.linspace(-1, 1, shape[0])[:, None]
    columns = torch.linspace(-1, 1, shape[1])[None, :]
    coefficients = (2 * torch.rand(6, generator=generator) - 1) * _PHASE_RANGE
    terms = (torch.ones(1, 1), rows, columns, rows**2, rows * columns, columns**2)
    return torch.stack([c * t.expand(shape) for c, t in zip(coefficients, terms, strict=True)]).sum(0)

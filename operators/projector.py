"""What every projector of tomography knows of its images and data."""

from __future__ import annotations

from torch import Tensor

from treg_med.operators.base import LinearOperator
from treg_med.operators.sinogram_noise import estimate_sinogram_noise_std

__all__ = ["Projector"]


class Projector(LinearOperator):
    """Line integrals of an attenuation in 1/mm, whose normal operator is nearly a convolution."""

    image_unit = "1/mm"

    @property
    def shift_invariant(self) -> bool:
        """Nearly so, if not at the border."""
        return True

    def noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise from fine detail along the detector (see `estimate_sinogram_noise_std`)."""
        return estimate_sinogram_noise_std(y.flatten(0, -2), None if weights is None else weights.flatten(0, -2))

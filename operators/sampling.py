"""Cartesian k-space: the centred Fourier transform of an image, and which of its points are sampled."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from treg_med.operators.base import Composition, Identity, LinearOperator, PerCoil
from treg_med.operators.cartesian_mri import CartesianMRI
from treg_med.operators.coil_maps import CoilMaps
from treg_med.operators.contract import checked_image_shape
from treg_med.operators.fourier import centered_fft2, centered_ifft2
from treg_med.operators.inpainting import Inpainting
from treg_med.operators.masks import SamplingMask
from treg_med.operators.noise import estimate_noise_std, whitened

__all__ = ["FourierTransform", "Sampling"]


class FourierTransform(LinearOperator):
    r"""Orthonormal DFT of an image ``(*batch, H, W)``, with the origin of both domains at index ``n // 2``.

    :math:`A^H A = A A^H = 1`; see `centered_fft2`.
    """

    shift_invariant = True

    def __init__(self, shape: tuple[int, int]) -> None:
        shape = checked_image_shape(shape)
        super().__init__(shape, shape, is_complex=True)

    def _forward(self, x: Tensor) -> Tensor:
        return centered_fft2(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return centered_ifft2(y)

    @property
    def gram(self) -> LinearOperator:
        """The identity."""
        return Identity(self.domain_shape)

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return 1."""
        return 1.0

    def samples_noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise from the highest frequencies (see `estimate_noise_std`)."""
        return estimate_noise_std(whitened(y, weights))


class Sampling(Inpainting):
    r"""Keep the samples of k-space ``(*batch, H, W)`` where a mask is 1; the others are exactly 0.

    ``Sampling(mask) @ FourierTransform(shape) @ CoilMaps(maps)`` gives `CartesianMRI`, which does the same in fewer
    passes over memory.

    Parameters
    ----------
    mask
        ``(H, W)`` boolean or 0/1, or a `SamplingMask`.

    Raises
    ------
    GeometryError, ConfigError
        As `Inpainting`.
    """

    def __init__(self, mask: Tensor | SamplingMask) -> None:
        super().__init__(mask.mask if isinstance(mask, SamplingMask) else mask, is_complex=True)

    def samples_noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise from the highest sampled frequencies (see `estimate_noise_std`)."""
        return estimate_noise_std(whitened(y, weights), self.mask)

    def facts(self) -> dict[str, Any]:
        """Return the acceleration and the mask."""
        return {"acceleration": self.mask.numel() / int(self.mask.sum()), **super().facts()}

    def _fused_with(self, inner: LinearOperator) -> LinearOperator | None:
        match inner:
            case Composition(outer=PerCoil(operator=FourierTransform()), inner=CoilMaps(maps=maps)):
                return CartesianMRI(self.mask, maps)
        return None

"""Circular convolution of an image with a known kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.base import LinearOperator
from treg_med.operators.contract import checked_image_shape, checked_matrix
from treg_med.operators.diagonalised import DiagonalisedOperator

__all__ = ["Blur"]


class Blur(DiagonalisedOperator):
    """Convolve images ``(*batch, H, W)`` with a kernel, periodically.

    y[m, n] = sum_{i, j} k[i, j] x[(m - i + h // 2) mod H, (n - j + w // 2) mod W]

    The DFT diagonalises the map, y = F^-1 (T * F x) with T the transfer function of k, so that norm, gram,
    prox and pinv are closed forms. The pinv cut-off matters here: a Gaussian kernel passes its highest
    frequencies with gains far below the rounding error.

    Parameters
    ----------
    shape
        ``(H, W)`` of the image.
    kernel
        Real ``(h, w)`` with its centre at index ``n // 2``, not larger than the image; kept in double
        precision. Any scale: a kernel of sum one keeps the mean of the image.
    is_complex
        Whether images are complex; the kernel is real in any case.

    Raises
    ------
    GeometryError
        If the kernel does not have two axes or exceeds the image.
    ConfigError
        If the kernel is complex, holds NaN or Inf, or is 0 everywhere.
    """

    kernel: Tensor

    def __init__(self, shape: tuple[int, int], kernel: Tensor, *, is_complex: bool = False) -> None:
        image_shape = checked_image_shape(shape)
        super().__init__(image_shape, image_shape, is_complex=is_complex)
        self.register_buffer("kernel", _checked_kernel(kernel, image_shape), persistent=False)

    @property
    def gram(self) -> LinearOperator:
        """The convolution with the autocorrelation of the kernel."""
        height, width = self.domain_shape
        autocorrelation = self._synthesised(self._gains(torch.float64).abs().square()).real
        return Blur(
            (height, width),
            torch.roll(autocorrelation, (height // 2, width // 2), dims=(-2, -1)),
            is_complex=self.is_complex,
        )

    def _forward(self, x: Tensor) -> Tensor:
        return self._synthesised(self._gains(x.dtype) * self._analysed(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._synthesised(self._gains(y.dtype).conj() * self._analysed(y))

    def _gains(self, dtype: torch.dtype) -> Tensor:
        """Return the transfer function; of a real operator the half spectrum, which says it all."""

        def build() -> Tensor:
            height, width = self.kernel.shape
            padded = torch.zeros(self.domain_shape, dtype=torch.float64, device=self.kernel.device)
            padded[:height, :width] = self.kernel
            centred = torch.roll(padded, (-(height // 2), -(width // 2)), dims=(-2, -1))
            return self._analysed(centred).to(dtype.to_complex())

        return self._cached(("gains", dtype), build)

    def _analysed(self, y: Tensor) -> Tensor:
        return torch.fft.fft2(y) if self.is_complex else torch.fft.rfft2(y)

    def _synthesised(self, z: Tensor) -> Tensor:
        return torch.fft.ifft2(z) if self.is_complex else torch.fft.irfft2(z, s=self.domain_shape)


def _checked_kernel(kernel: Tensor, image_shape: tuple[int, int]) -> Tensor:
    values = checked_matrix("blur kernel", kernel)
    if values.shape[0] > image_shape[0] or values.shape[1] > image_shape[1]:
        raise GeometryError(
            f"a kernel {tuple(values.shape)} exceeds the image {image_shape}; crop the kernel or pad the image"
        )
    if not bool(values.any()):
        raise ConfigError("the blur kernel is 0 everywhere; it needs at least one nonzero entry")
    return values

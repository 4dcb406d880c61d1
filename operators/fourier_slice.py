"""Parallel projections of an image by the Fourier slice theorem."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from treg_med.operators.base import LinearOperator
from treg_med.operators.nufft import NonuniformFFT, smooth_length
from treg_med.operators.real_nufft import RealNonuniformFFT

__all__ = ["FourierSlice"]

# Empty samples between the object and its periodic copy, for the tails of band-limited projections.
_MARGIN = 24


class FourierSlice(LinearOperator):
    r"""Line integrals of square pixels, averaged over a detector bin, ``(*batch, H, W)`` to ``(*batch, views, bins)``.

    .. math::
        y_{bk} = \frac{1}{P \Delta} \sum_m e^{2 \pi i m (k - c) / P}\,
        p^2\, \mathrm{sinc}(f p \cos b)\, \mathrm{sinc}(f p \sin b)\, \mathrm{sinc}(f w)\,
        \sum_{ij} x_{ij}\, e^{-2 \pi i f (x_j \cos b + y_i \sin b)}, \qquad f = \frac{m}{P \Delta}

    with pixel size p, bin size :math:`\Delta`, aperture w and c the bin of the rotation axis; the inner sum is a
    `RealNonuniformFFT`. P is large enough that periodic copies of the object miss the detector. Frequencies up to
    :math:`(1/2 + \mathrm{replicas}) / \Delta` are taken; those beyond the first 1/2 fold back, as in a detector of
    separate bins.

    Parameters
    ----------
    image_shape
        ``(H, W)``.
    angles
        ``(views,)`` float64 in rad, already checked.
    n_bins, pixel_size, bin_size, centre
        As in `ParallelBeamCT`.
    aperture
        Width w in mm that a bin averages over.
    replicas
        Spectral replicas that are folded in.
    upsampling
        Samples per bin: the profile is returned on a grid finer than the bins, ``n_bins * upsampling`` samples of which
        number ``upsampling * k`` lies at bin k. Not together with replicas.
    tolerance
        None, or that of a `NonuniformFFT` by finufft in its place.
    response
        Further real factor, of the frequencies in cycles per bin.

    Bracewell, Aust. J. Phys. 9 (1956) 198.
    """

    _angles: Tensor
    _factor: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int],
        angles: Tensor,
        n_bins: int,
        *,
        pixel_size: float,
        bin_size: float,
        centre: float,
        aperture: float,
        replicas: int = 0,
        upsampling: int = 1,
        tolerance: float | None = None,
        response: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(image_shape, (len(angles), n_bins * upsampling), is_complex=False)
        self._stride = 1 + 2 * replicas
        self._upsampling = upsampling
        self._pixel_size, self._bin_size, self._centre = pixel_size, bin_size, centre
        self.register_buffer("_angles", angles.clone())
        reach = math.hypot(*image_shape) / 2 * pixel_size / bin_size + max(centre, n_bins - 1 - centre)
        self._period = smooth_length(max(n_bins, math.ceil(reach)) + _MARGIN)
        f, column, row = self._frequencies()
        points = torch.stack([row, column], -1)
        self._planned = (
            None if tolerance is None else NonuniformFFT(image_shape, points.reshape(-1, 2), tolerance=tolerance)
        )
        self._transform = RealNonuniformFFT(image_shape, points)
        gain = torch.sinc(column) * torch.sinc(row) * torch.sinc(f * (aperture / bin_size))
        gain = gain * (pixel_size**2 / bin_size / self._period) * (1 if response is None else response(f))
        self.register_buffer("_factor", (gain * self._centring()).to(torch.complex64))

    def _frequencies(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return f ``(n,)`` in cycles per bin, its parts along columns and rows ``(views, n)`` per pixel; float64."""
        count = self._stride * self._period // 2 + 1
        f = torch.arange(count, dtype=torch.float64, device=self._angles.device) / self._period
        angles = self._angles.double()[:, None]
        # The ratio first: it is the same in whatever unit lengths are.
        in_pixels = f * (self._pixel_size / self._bin_size)
        return f, in_pixels * angles.cos(), -in_pixels * angles.sin()

    def _centring(self) -> Tensor:
        """Return the phase from the middle of the image, where the transform has pixel n // 2, to bin zero."""
        f, column, row = self._frequencies()
        height, width = self.domain_shape
        away = column * (width // 2 - (width - 1) / 2) + row * (height // 2 - (height - 1) / 2)
        turns = away + f * self._centre
        return torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *self.domain_shape)
        y = flat.new_empty(len(flat), *self.range_shape)
        for views, profiles in self.forward_blocks(flat):
            y[:, views] = profiles
        return y.reshape(*x.shape[:-2], *self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, *self.range_shape)
        image = self.adjoint_blocks(lambda views: flat[:, views], len(flat), flat)
        return image.reshape(*y.shape[:-2], *self.domain_shape)

    def backproject(self, y: Tensor) -> Tensor:
        r"""Return :math:`\sum_b q_b(x \cos b + y \sin b)` at the pixels, q band-limited through the samples y."""
        flat = y.reshape(-1, *self.range_shape)
        key = ("centring", y.dtype, y.device)
        phase: Tensor = self._cached(key, lambda: (self._centring() / self._period).to(torch.complex64))
        image = self._gridded(lambda views: flat[:, views], len(flat), flat, phase)
        return image.reshape(*y.shape[:-2], *self.domain_shape)

    @property
    def view_blocks(self) -> list[slice]:
        """Blocks of views that are projected at once."""
        return self._transform.view_blocks() if self._planned is None else [slice(0, self.range_shape[0])]

    def forward_blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Give the blocks of views and their profiles ``(n, views, bins)`` of images ``(n, H, W)``."""
        if self._planned is None:
            blocks = self._transform.forward_blocks(x)
        else:
            values = self._planned._forward(torch.complex(x, torch.zeros_like(x)))
            blocks = iter([(self.view_blocks[0], values.unflatten(-1, self._factor.shape))])
        for views, values in blocks:
            values *= self._factor[views].to(values.dtype)
            yield views, self._to_bins(values)

    def adjoint_blocks(self, profiles: Callable[[slice], Tensor], count: int, like: Tensor) -> Tensor:
        """Return images ``(count, H, W)`` from a function that gives the profiles of a block of views."""
        return self._gridded(profiles, count, like, self._factor)

    def _gridded(self, profiles: Callable[[slice], Tensor], count: int, like: Tensor, factor: Tensor) -> Tensor:
        def spectrum(views: slice) -> Tensor:
            values = self._from_bins(profiles(views))
            return values.mul_(factor[views].to(values.dtype).conj())

        if self._planned is not None:
            return self._planned._adjoint(spectrum(self.view_blocks[0]).flatten(-2)).real.contiguous()
        blocks = ((views, spectrum(views)) for views in self.view_blocks)
        return self._transform.adjoint_blocks(blocks, count, like)

    def _to_bins(self, spectrum: Tensor) -> Tensor:
        length = self._stride * self._upsampling * self._period
        fine = torch.fft.irfft(spectrum, n=length, norm="forward")
        return fine[..., : self._stride * self.range_shape[-1] : self._stride]

    def _from_bins(self, y: Tensor) -> Tensor:
        """Apply the transpose of `_to_bins`: frequencies between zero and Nyquist stand for their negatives too."""
        if self._stride > 1:
            fine = y.new_zeros(*y.shape, self._stride)
            fine[..., 0] = y
            y = fine.flatten(-2)
        length = self._stride * self._upsampling * self._period
        spectrum = torch.fft.rfft(y, n=length)[..., : self._factor.shape[-1]].contiguous()
        spectrum[..., 1 : (length + 1) // 2] *= 2
        return spectrum

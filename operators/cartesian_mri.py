"""Cartesian MRI, single and multi coil: y = M F S x."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.base import LinearOperator
from treg_med.operators.fourier_diagonal import FourierDiagonal
from treg_med.operators.masks import SamplingMask, mask_facts
from treg_med.operators.noise import estimate_noise_std, whitened

__all__ = ["CartesianGram", "CartesianMRI"]

# Bytes of one temporary: on a CPU it must stay in the cache of a core, on an accelerator fill the device.
_CACHE_BYTES = 1 << 20
_ACCELERATOR_BYTES = 1 << 28
# Above this size the C library maps fresh pages for every allocation.
_MMAP_BYTES = 1 << 25
_NUMPY_DTYPE = {torch.complex64: np.complex64, torch.complex128: np.complex128}


class CartesianMRI(LinearOperator):
    """Undersampled multi-coil Fourier measurement of an image.

    y_c = M F (S_c x),  A^H y = sum_c conj(S_c) F^H (M y_c)

    with F the orthonormal DFT whose origin lies at index ``n // 2`` of both domains (any lengths, even or
    odd), M the sampling mask and S_c the sensitivity map of coil c. Images are ``(*batch, H, W)``, k-space is
    ``(*batch, coils, H, W)``; unsampled entries of ``forward`` are exactly +0.

    Parameters
    ----------
    mask
        ``(H, W)`` boolean or 0/1, or ``(W,)`` for a pattern that is the same in every row, or a
        `SamplingMask`.
    sensitivity_maps
        Complex ``(coils, H, W)``; None is one coil of sensitivity 1 (k-space keeps a coil axis of length 1).

    Raises
    ------
    GeometryError
        If the shapes do not fit together or the mask samples nothing.
    ConfigError
        If the mask is not 0/1, or the maps are not complex and finite.

    Notes
    -----
    Pruessmann et al., Magn. Reson. Med. 42 (1999) 952 (SENSE). The shifts of the centred transform are free:
    with xs[m] = x[m + n//2], (F x)[k] = sum_m p[m] xs[m] exp(-2 pi i k m / n),
    p[m] = exp(2 pi i (n//2) m / n) / sqrt(n), and p is stored in the shifted maps. Coils are looped over so
    that each temporary stays in cache.
    """

    mask: Tensor
    sensitivity_maps: Tensor | None

    def __init__(self, mask: Tensor | SamplingMask, sensitivity_maps: Tensor | None = None) -> None:
        pattern, maps = _checked_inputs(mask, sensitivity_maps)
        height, width = pattern.shape
        super().__init__(
            (height, width), (1 if maps is None else maps.shape[0], height, width), is_complex=True
        )
        self.register_buffer("mask", pattern, persistent=False)
        self.register_buffer("sensitivity_maps", maps, persistent=False)
        self._n_sampled = int(pattern.sum())
        self._line_axis = _line_axis(pattern)
        # A A^H = M, which closes prox, pinv and norm, holds for one coil of unit modulus only.
        self._unit_coil = maps is None or (
            maps.shape[0] == 1
            and bool(torch.allclose(maps.abs(), torch.ones_like(maps.real), rtol=0, atol=1e-6))
        )

    @property
    def n_coils(self) -> int:
        """Number of receive coils (1 without maps)."""
        return self.range_shape[0]

    @property
    def n_sampled(self) -> int:
        """Number of sampled k-space positions of one coil."""
        return self._n_sampled

    @property
    def acceleration(self) -> float:
        """True acceleration, H W / (sampled positions)."""
        return self.mask.numel() / self._n_sampled

    @property
    def gram(self) -> LinearOperator:
        """The normal operator in one pass per coil, one-dimensional where whole lines are sampled."""
        return CartesianGram(self)

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the spectral norm: 1 for a single coil of unit modulus, else by power iteration (cached)."""
        return 1.0 if self._unit_coil else super().norm(max_iter=max_iter, rtol=rtol)

    def pinv(self, y: Tensor, *, x0: Tensor | None = None, max_iter: int = 100, rtol: float = 1e-6) -> Tensor:
        """Return the least-squares solution nearest to ``x0``; closed form for one coil of unit modulus."""
        if not self._unit_coil:
            return super().pinv(y, x0=x0, max_iter=max_iter, rtol=rtol)
        return self.adjoint(y) if x0 is None else x0 + self.adjoint(y - self.forward(x0))

    def prox(
        self, x0: Tensor, y: Tensor, weight: float | Tensor, *, max_iter: int = 50, rtol: float = 1e-6
    ) -> Tensor:
        """Return argmin_x 1/2 ||A x - y||^2 + weight/2 ||x - x0||^2.

        For a single coil of unit modulus, x = x0 + A^H (y - A x0) / (1 + weight); else conjugate gradients.
        Parameters and errors as in `LinearOperator.prox`.
        """
        if not self._unit_coil:
            return super().prox(x0, y, weight, max_iter=max_iter, rtol=rtol)
        x0, y, column = self._prox_arguments(x0, y, weight)
        return x0 + self.adjoint(y - self.forward(x0)) / (1 + column)

    @property
    def measured(self) -> Tensor:
        """The mask, the same for every coil."""
        return self.mask

    def start(self, y: Tensor) -> Tensor:
        r"""Return the zero-filled image :math:`A^H y / \max \sum_c |S_c|^2`."""
        zero_filled = self.adjoint(y)
        if self.sensitivity_maps is None:
            return zero_filled
        maps = self.sensitivity_maps
        largest = self._cached("largest", lambda: float(torch.linalg.vector_norm(maps, dim=0).max()))
        return zero_filled / largest**2

    def noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise, from the samples alone where one coil of unit modulus explains all data."""
        return self.samples_noise_std(y, weights) if self._unit_coil else super().noise_std(y, weights)

    def samples_noise_std(self, y: Tensor, weights: Tensor | None = None) -> float:
        """Estimate the noise from the highest sampled frequencies (see `estimate_noise_std`)."""
        return estimate_noise_std(whitened(y, weights), self.mask)

    def fourier_diagonal(self) -> FourierDiagonal:
        r"""Return the share of every frequency that the coils bring into the sampled set.

        .. math:: d(k) = \sum_c \sum_q |\hat S_c(q)|^2 M(k + q)

        One coil of sensitivity one gives the mask, and its normal operator has no other entries.

        Koolstra et al.: Accelerating compressed sensing in parallel imaging reconstructions using an efficient
        circulant preconditioner for Cartesian trajectories, Magn. Reson. Med. 81 (2019) 670.
        """
        sampled = torch.fft.ifftshift(self.mask.float())
        if self.sensitivity_maps is None:
            return FourierDiagonal(sampled, exact=True)
        maps = self.sensitivity_maps.to(torch.complex64)
        power = torch.fft.fft2(maps).abs().square().sum(0) / self.mask.numel() ** 2
        correlation = torch.fft.ifft2(torch.fft.fft2(power).conj() * torch.fft.fft2(sampled))
        return FourierDiagonal(correlation.real.clamp_min(0.0))

    def facts(self) -> dict[str, Any]:
        """Return coils, acceleration and the mask: its size, samples, hash, and columns where these are whole."""
        return {
            "coils": self.n_coils,
            "acceleration": self.acceleration,
            "mask": self._cached("mask facts", lambda: mask_facts(self.mask)),
        }

    def _forward(self, x: Tensor) -> Tensor:
        shifted = self._shifted_images(x)
        kspace = _empty(shifted, (shifted.shape[0], *self.range_shape))
        n_images, n_coils = self._block_size(shifted)
        map_blocks = self._folded_maps(x.dtype).split(n_coils)
        mask_words = self._mask_words(x.dtype)
        for images, data in zip(shifted.split(n_images), _words(kspace).split(n_images), strict=True):
            for maps, words in zip(map_blocks, data.split(n_coils, dim=1), strict=True):
                torch.bitwise_and(_words(torch.fft.fft2(maps * images)), mask_words, out=words)
        return kspace.reshape(*x.shape[:-2], *self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        kspace = y.resolve_conj().resolve_neg().reshape(math.prod(y.shape[:-3]), *self.range_shape)
        total = y.new_zeros(kspace.shape[0], 1, *self.domain_shape)
        n_images, n_coils = self._block_size(total)
        map_blocks = self._folded_maps(y.dtype).split(n_coils)
        signs = self._conjugating_mask(y.dtype)
        parts = torch.view_as_real(kspace)
        for result, data in zip(total.split(n_images), parts.split(n_images), strict=True):
            for maps, block in zip(map_blocks, data.split(n_coils, dim=1), strict=True):
                _accumulate(result, maps, torch.fft.fft2(torch.view_as_complex(block * signs)))
        return self._unshifted_conjugate(total).reshape(*y.shape[:-3], *self.domain_shape)

    def _normal(self, x: Tensor) -> Tensor:
        """Return A^H A x without forming k-space; along fully sampled lines F^H F = 1 cancels."""
        shifted = self._shifted_images(x)
        total = torch.zeros_like(shifted)
        n_images, n_coils = self._block_size(shifted)
        map_blocks = self._folded_maps(x.dtype).split(n_coils)
        signs = self._conjugating_mask(x.dtype)
        axes = (-2, -1) if self._line_axis is None else (self._line_axis,)
        # The folded maps carry 1/sqrt(HW); a transform that is left out owes its share back.
        share = 1.0 if self._line_axis is None else float(self.domain_shape[-3 - self._line_axis])
        for images, result in zip(shifted.split(n_images), total.split(n_images), strict=True):
            for maps in map_blocks:
                spectrum = torch.fft.fftn(maps * images, dim=axes)
                torch.view_as_real(spectrum).mul_(signs)
                _accumulate(result, maps, torch.fft.fftn(spectrum, dim=axes), share)
        return self._unshifted_conjugate(total).reshape(x.shape)

    def _block_size(self, images: Tensor) -> tuple[int, int]:
        """Return how many images and coils to work on at once: few for the cache, many if they are small."""
        budget = _CACHE_BYTES if images.device.type == "cpu" else _ACCELERATOR_BYTES
        affordable = max(1, budget // (self.mask.numel() * images.element_size()))
        return max(1, affordable // self.n_coils), min(affordable, self.n_coils)

    def _shifted_images(self, x: Tensor) -> Tensor:
        height, width = self.domain_shape
        images = x.reshape(math.prod(x.shape[:-2]), 1, height, width)
        return torch.roll(images, (-(height // 2), -(width // 2)), dims=(-2, -1))

    def _unshifted_conjugate(self, images: Tensor) -> Tensor:
        height, width = self.domain_shape
        return torch.roll(images, (height // 2, width // 2), dims=(-2, -1)).conj_physical_()

    def _folded_maps(self, dtype: torch.dtype) -> Tensor:
        """Return the shifted maps times phase and scale of the centred transform."""

        def build() -> Tensor:
            height, width = self.domain_shape
            phase = (_shift_phase(height)[:, None] * _shift_phase(width)).to(self.mask.device)
            if self.sensitivity_maps is None:
                return phase[None].to(dtype)
            shifted = torch.roll(self.sensitivity_maps, (-(height // 2), -(width // 2)), dims=(-2, -1))
            return (shifted * phase).to(dtype)

        maps: Tensor = self._cached(("maps", dtype), build)
        return maps

    def _mask_words(self, dtype: torch.dtype) -> Tensor:
        """Return the mask as words of all ones or all zeros: a bitwise and leaves exactly +0."""

        def build() -> Tensor:
            words = -self.mask.to(torch.int64)
            return words if dtype == torch.complex64 else torch.stack([words, words], dim=-1)

        words: Tensor = self._cached(("words", dtype), build)
        return words

    def _conjugating_mask(self, dtype: torch.dtype) -> Tensor:
        """Return (M, -M) for the real and imaginary part: masks and conjugates in one pass.

        A^H y = sum_c conj(S_c) F^H M y_c = conj(sum_c S_c F conj(M y_c)): with the conjugate taken there, the
        maps are read from memory once and no conjugated copy of them is kept.
        """

        def build() -> Tensor:
            pattern = self.mask[:1] if self._line_axis == -1 else self.mask
            sign = pattern.to(torch.float32 if dtype == torch.complex64 else torch.float64)
            return torch.stack([sign, -sign], dim=-1)

        weights: Tensor = self._cached(("weights", dtype), build)
        return weights

    def __repr__(self) -> str:
        """Return shapes and true acceleration."""
        return f"{super().__repr__()}, acceleration {self.acceleration:.3g}"


class CartesianGram(LinearOperator):
    """The normal operator ``A^H A`` of `CartesianMRI`: sum_c conj(S_c) F^H M F S_c, self-adjoint."""

    def __init__(self, operator: CartesianMRI) -> None:
        super().__init__(operator.domain_shape, operator.domain_shape, is_complex=True)
        self.operator = operator

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._normal(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._normal(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """The operator itself."""
        return self


def _checked_inputs(mask: Tensor | SamplingMask, maps: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return an ``(H, W)`` boolean mask and contiguous maps on one device, or raise."""
    values = torch.as_tensor(mask.mask if isinstance(mask, SamplingMask) else mask)
    if maps is not None:
        if not isinstance(maps, Tensor) or not maps.is_complex():
            raise ConfigError(
                f"sensitivity maps must be a complex tensor, got {getattr(maps, 'dtype', type(maps))}"
            )
        if maps.ndim != 3 or maps.shape[0] < 1:
            raise GeometryError(
                f"sensitivity maps must have shape (coils, H, W), got {tuple(maps.shape)} "
                f"with mask {tuple(values.shape)}"
            )
        if not bool(torch.isfinite(torch.view_as_real(maps.resolve_conj())).all()):
            raise ConfigError("sensitivity maps hold NaN or Inf; mask them out before building the operator")
        maps = maps.detach().resolve_conj().clone(memory_format=torch.contiguous_format)
    if values.ndim == 1 and maps is not None and values.shape[0] == maps.shape[2]:
        values = values.expand(maps.shape[1:])
    if values.ndim != 2 or (maps is not None and values.shape != maps.shape[1:]):
        came = "no sensitivity maps" if maps is None else f"sensitivity maps {tuple(maps.shape)}"
        raise GeometryError(
            "expected a mask (H, W), or (W,) with maps, that fits the maps; "
            f"got mask {tuple(values.shape)} and {came}"
        )
    if not bool(((values == 0) | (values == 1)).all()):
        raise ConfigError("a sampling mask must hold only 0 and 1 (or booleans); weights are not supported")
    pattern = (values != 0).contiguous().clone()
    if not bool(pattern.any()):
        raise GeometryError(
            f"the mask {tuple(pattern.shape)} samples nothing; it needs at least one nonzero entry"
        )
    return (pattern if maps is None else pattern.to(maps.device)), maps


def _line_axis(mask: Tensor) -> int | None:
    """Return the undersampled axis of a mask of whole lines, None for a two-dimensional pattern."""
    if bool((mask == mask[:1, :]).all()):
        return -1
    if bool((mask == mask[:, :1]).all()):
        return -2
    return None


def _shift_phase(n: int) -> Tensor:
    """Return exp(2 pi i (n//2) m / n) / sqrt(n), m = 0..n-1, in complex128."""
    cycles = (torch.arange(n) * (n // 2) % n).double() / n
    return torch.polar(torch.full((n,), 1 / math.sqrt(n), dtype=torch.float64), 2 * math.pi * cycles)


def _words(x: Tensor) -> Tensor:
    """View complex numbers as 64-bit words: one per complex64, a trailing pair per complex128."""
    return x.view(torch.int64) if x.dtype == torch.complex64 else torch.view_as_real(x).view(torch.int64)


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised tensor of the dtype and device of ``like``."""
    if like.device.type == "cpu" and math.prod(shape) * like.element_size() > _MMAP_BYTES:
        # NumPy asks for huge pages and torch does not: page faults would cost as much as the transforms.
        return torch.from_numpy(np.empty(shape, dtype=_NUMPY_DTYPE[like.dtype]))
    return like.new_empty(shape)


def _accumulate(total: Tensor, maps: Tensor, coil_images: Tensor, scale: float = 1.0) -> None:
    """Add scale * sum_c S_c v_c over the coil images (images, coils, H, W) to ``total`` (images, 1, H, W)."""
    if maps.shape[0] == 1:
        total.addcmul_(maps, coil_images, value=scale)
    else:
        total.add_((maps * coil_images).sum(1, keepdim=True), alpha=scale)

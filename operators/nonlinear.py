"""Non-linear forward models: what they share, phase retrieval, and saturation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.contract import Operator, align_batches, checked_image_shape
from treg_med.operators.fourier import centered_fft2, centered_ifft2

__all__ = ["FourierMagnitude", "NonlinearOperator", "Saturation"]


class NonlinearOperator(Operator):
    """A differentiable map A between image and measurement space that is not linear.

    There is no adjoint: ``jvp`` and ``vjp`` give the Jacobian A'(x) and its conjugate transpose. A subclass
    writes ``_map`` in differentiable torch operations. Shapes, batches, precision and immutability are as for
    linear operators.

    Parameters
    ----------
    domain_shape, range_shape, is_complex
        As for `LinearOperator`.
    homogeneous
        Whether A(c x) = c A(x) for c > 0, so that measurements may be rescaled.
    lipschitz
        Largest ||A(x) - A(x')|| / ||x - x'||, which bounds the steps of gradient methods.
    """

    def __init__(
        self,
        domain_shape: tuple[int, ...],
        range_shape: tuple[int, ...],
        *,
        is_complex: bool,
        homogeneous: bool,
        lipschitz: float,
    ) -> None:
        super().__init__(domain_shape, range_shape, is_complex=is_complex)
        self._homogeneous = bool(homogeneous)
        self._lipschitz = float(lipschitz)

    @property
    def homogeneous(self) -> bool:
        """Whether A(c x) = c A(x) for every c > 0."""
        return self._homogeneous

    def norm(self, *, max_iter: int = 100, rtol: float = 1e-4) -> float:
        """Return the same number as `lipschitz`."""
        return self._lipschitz

    @property
    def lipschitz(self) -> float:
        """Largest ||A(x) - A(x')|| / ||x - x'||."""
        return self._lipschitz

    def _map(self, x: Tensor) -> Tensor:
        """Return A(x) of a checked, not empty tensor ``(*batch, *domain_shape)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement _map")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A(x)``, ``(*batch, *range_shape)``, for ``x`` of shape ``(*batch, *domain_shape)``.

        Raises
        ------
        GeometryError
            If the trailing shape of ``x`` is not ``domain_shape``.
        ConfigError
            If the dtype cannot be used.
        """
        return self._evaluated(self._checked(x, self.domain_shape, "input"))

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """Return A'(x) v, ``(*batch, *range_shape)``, for a direction ``v`` in image space.

        Batches broadcast; errors as in ``forward``.
        """
        x, v = self._pair(x, v, self.domain_shape, "direction")
        # Forward mode refuses a point of which several elements share memory, as in an expanded batch.
        tangent: Tensor = torch.func.jvp(self._evaluated, (x.contiguous(),), (v,))[1]
        return tangent

    def vjp(self, x: Tensor, u: Tensor) -> Tensor:
        """Return A'(x)^H u, ``(*batch, *domain_shape)``, for ``u`` in measurement space.

        Batches broadcast; errors as in ``forward``.
        """
        x, u = self._pair(x, u, self.range_shape, "measurement")
        gradient: Tensor = torch.func.vjp(self._evaluated, x)[1](u)[0]
        return gradient

    def _evaluated(self, x: Tensor) -> Tensor:
        if x.numel() == 0:  # a Fourier transform refuses an empty batch
            return x.new_zeros(*x.shape[: -len(self.domain_shape)], *self.range_shape)
        return self._map(x)

    def _pair(self, x: Tensor, other: Tensor, shape: tuple[int, ...], role: str) -> tuple[Tensor, Tensor]:
        """Check an image and a second tensor and bring both to one batch and precision."""
        x, other = self._checked(x, self.domain_shape, "input"), self._checked(other, shape, role)
        x, other = align_batches(x, len(self.domain_shape), other, len(shape))
        dtype = torch.promote_types(x.dtype, other.dtype)
        return x.to(dtype), other.to(dtype)

    def __repr__(self) -> str:
        """Return shapes, and that the map is non-linear."""
        return f"{super().__repr__()}, non-linear"


class FourierMagnitude(NonlinearOperator):
    """Measure the magnitude of the oversampled Fourier transform of a real image: phase retrieval.

    y = |F P x|

    with P the padding by zeros of ``round(oversampling / 8 n)`` pixels on each side of an axis of n, and F
    the orthonormal DFT with the origin of both domains at index ``n // 2``. An oversampling of 2 pads
    256 x 256 to 384 x 384. Homogeneous. Where F P x = 0 the map has no derivative and 0 is taken.

    Parameters
    ----------
    shape
        ``(H, W)`` of the image.
    oversampling
        Padding of each side in eighths of the image, >= 0.

    Raises
    ------
    GeometryError
        If the shape is not ``(H, W)``.
    ConfigError
        If the oversampling is negative or not finite.

    Notes
    -----
    Fienup, Appl. Opt. 21 (1982) 2758. The padding is that of Chung et al., ICLR 2023 (arXiv 2209.14687).
    """

    def __init__(self, shape: tuple[int, int], oversampling: float = 2.0) -> None:
        height, width = checked_image_shape(shape)
        if not (math.isfinite(oversampling) and oversampling >= 0):
            raise ConfigError(f"oversampling must be a finite number >= 0, got {oversampling}")
        rows, columns = (round(oversampling / 8 * n) for n in (height, width))
        super().__init__(
            (height, width),
            (height + 2 * rows, width + 2 * columns),
            is_complex=False,
            homogeneous=True,
            lipschitz=1.0,
        )
        self.oversampling = float(oversampling)
        self.padding = (rows, columns)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x`` with the magnitudes of its Fourier transform replaced by ``y``.

        x' = Re P^T F^-1 (max(y, 0) z / |z|),  z = F P x, and z / |z| = 1 where z = 0.

        Parameters
        ----------
        x
            Images ``(*batch, H, W)``.
        y
            Magnitudes ``(*batch, *range_shape)``; batches broadcast.

        Returns
        -------
        Images ``(*batch, H, W)``; errors as in ``forward``.
        """
        x, y = self._pair(x, y, self.range_shape, "measurement")
        if x.numel() == 0:
            return x
        spectrum = self._spectrum(x)
        phase = torch.where(spectrum == 0, 1, spectrum.sgn())
        rows, columns = self.padding
        height, width = self.domain_shape
        padded = centered_ifft2(y.clamp(min=0) * phase).real
        return padded[..., rows : rows + height, columns : columns + width]

    def _map(self, x: Tensor) -> Tensor:
        return self._spectrum(x).abs()

    def _spectrum(self, x: Tensor) -> Tensor:
        rows, columns = self.padding
        return centered_fft2(torch.nn.functional.pad(x, (columns, columns, rows, rows)))


class Saturation(NonlinearOperator):
    """Amplify a real image and clip it at the limits of the detector.

    y = min(max(gain x, -limit), limit)

    Not homogeneous. The derivative is ``gain`` within the limits, both included, and 0 beyond.

    Parameters
    ----------
    shape
        Trailing shape of the image.
    gain
        Amplification, > 0.
    limit
        Largest magnitude of y, > 0, in its units.

    Raises
    ------
    ConfigError
        If the gain or the limit is not positive and finite.
    """

    def __init__(self, shape: tuple[int, ...], gain: float = 2.0, limit: float = 1.0) -> None:
        for name, value in (("gain", gain), ("limit", limit)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"saturation needs a finite {name} > 0, got {value}")
        super().__init__(shape, shape, is_complex=False, homogeneous=False, lipschitz=gain)
        self.gain = float(gain)
        self.limit = float(limit)

    def _map(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(-self.limit, self.limit)

"""The diagonal of a normal operator in Fourier space, used to precondition its inversion."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.operators import CartesianMRI, LinearOperator

__all__ = ["fourier_diagonal"]

# Share of the largest value below which nothing is said about a frequency: tomography sees every one a little.
_FLOOR = 1e-4


def fourier_diagonal(operator: LinearOperator) -> Tensor:
    r"""Return the diagonal of :math:`F A^H A F^H`, shape ``(H, W)``, in FFT order (zero frequency first).

    For a mask M and coil maps :math:`S_c` it is the correlation

    .. math:: d(k) = \sum_c \sum_q |\hat S_c(q)|^2 M(k + q),

    the share of frequency k that the coils bring into the sampled set. A circulant matrix with this
    diagonal is an excellent preconditioner for parallel imaging. A projector, whose normal operator is nearly a
    convolution, gets the modulus of the spectrum of its point response at the centre. Any other operator gets the
    constant ``||A||^2 / 2``.

    Koolstra et al.: Accelerating compressed sensing in parallel imaging reconstructions using an efficient
    circulant preconditioner for Cartesian trajectories, Magn. Reson. Med. 81 (2019) 670. Fessler, Booth:
    Conjugate-gradient preconditioning methods for shift-variant PET image reconstruction, IEEE Trans. Image Process. 8
    (1999) 688.
    """
    if operator.physical:
        return _point_response(operator)
    if not isinstance(operator, CartesianMRI):
        device = next((buffer.device for buffer in operator.buffers()), torch.device("cpu"))
        return torch.full(tuple(operator.domain_shape), operator.norm() ** 2 / 2, device=device)
    mask, maps = operator.mask, operator.sensitivity_maps
    sampled = torch.fft.ifftshift(mask.float())
    if maps is None:
        return sampled
    power = torch.fft.fft2(maps.to(torch.complex64)).abs().square().sum(0) / mask.numel() ** 2
    correlation = torch.fft.ifft2(torch.fft.fft2(power).conj() * torch.fft.fft2(sampled))
    return correlation.real.clamp_min(0.0)


def _point_response(operator: LinearOperator) -> Tensor:
    shape = tuple(operator.domain_shape)
    centre = tuple(n // 2 for n in shape)
    point = torch.zeros(shape, device=operator._device())
    point[centre] = 1.0
    response = torch.roll(operator.gram(point), tuple(-c for c in centre), tuple(range(len(shape))))
    spectrum = torch.fft.fftn(response).abs()
    return spectrum.clamp_min(_FLOOR * float(spectrum.max()))

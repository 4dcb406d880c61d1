"""The ramp filter of analytic reconstruction and its windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.nufft import smooth_length

__all__ = ["FILTERS", "FilterName", "ramp_filter"]

FilterName = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]

# Windows over the frequency as a share of the Nyquist frequency, from 0 to 1.
_WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ram-lak": torch.ones_like,
    "shepp-logan": lambda f: torch.sinc(f / 2),
    "cosine": lambda f: torch.cos(math.pi * f / 2),
    "hamming": lambda f: 0.54 + 0.46 * torch.cos(math.pi * f),
    "hann": lambda f: 0.5 + 0.5 * torch.cos(math.pi * f),
}

#: Names of the filters.
FILTERS = tuple(_WINDOWS)


def ramp_filter(
    profiles: Tensor, spacing: float, name: str = "ram-lak", *, angular: bool = False, extend: bool = False
) -> Tensor:
    r"""Convolve profiles ``(*batch, bins)`` with the band-limited ramp, times a window in frequency.

    .. math:: h_0 = \frac{1}{4 \Delta^2}, \qquad h_n = -\frac{1}{\pi^2 n^2 \Delta^2}\ (n\ \mathrm{odd}), \qquad 0\
        \mathrm{else}; \qquad q = \Delta\, h * p

    The kernel is sampled in space, so that the mean of the image is right, and profiles are padded to twice their
    length, so that nothing wraps around.

    Parameters
    ----------
    profiles
        Parallel to the last axis, zero beyond its ends.
    spacing
        Distance of the bins in mm (in rad with `angular`).
    name
        One of `FILTERS`: the window.
    angular
        Equal steps of the fan angle :math:`\gamma`: h is multiplied by :math:`(\gamma / \sin\gamma)^2`.
    extend
        Continue profiles that the detector cuts off by their last value, fading over a quarter of the detector.

    Raises
    ------
    ConfigError
        For an unknown name.

    Ramachandran and Lakshminarayanan, PNAS 68 (1971) 2236; Shepp and Logan, IEEE Trans. Nucl. Sci. 21 (1974) 21.
    Extension: Ohnesorge et al., Med. Phys. 27 (2000) 39.
    """
    if name not in _WINDOWS:
        raise ConfigError(f"expected a filter out of {', '.join(FILTERS)}, got {name!r}")
    bins = profiles.shape[-1]
    padded = _extended(profiles) if extend else profiles
    offset = (padded.shape[-1] - bins) // 2
    length = smooth_length(2 * padded.shape[-1])
    n = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64)
    kernel = torch.where(n % 2 == 0, 0.0, -1 / (math.pi * n.where(n != 0, 1)).square())
    kernel[0] = 0.25
    if angular:
        turned = (n * spacing).clamp(-math.pi / 2, math.pi / 2)
        kernel = kernel / torch.sinc(turned / math.pi).square()
    response = torch.fft.rfft(kernel).real / spacing
    response = response * _WINDOWS[name](torch.linspace(0, 1, len(response), dtype=torch.float64))
    spectrum = torch.fft.rfft(padded, n=length) * response.to(profiles)
    return torch.fft.irfft(spectrum, n=length)[..., offset : offset + bins].contiguous()


def _extended(profiles: Tensor) -> Tensor:
    bins = max(1, profiles.shape[-1] // 4)
    fade = (0.5 + 0.5 * torch.cos(math.pi * (torch.arange(bins, device=profiles.device) + 1) / bins)).to(profiles)
    return torch.cat([profiles[..., :1] * fade.flip(0), profiles, profiles[..., -1:] * fade], -1)

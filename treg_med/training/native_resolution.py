"""Which noise levels a slice of a coarse scan may teach: those whose noise hides the detail that it lacks."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.training.slices import CaptionedSlices

__all__ = ["least_timesteps", "missing_power"]

#: A voxel of as many pixels still shows what a usual scan does.
_FINE = 1.25
#: Noise power over signal power, in the band that a slice lacks, from which on the detail counts as hidden.
_HIDDEN = 50.0
_FOR_POWER = 200
_AT_ONCE = 50


def missing_power(images: Tensor, voxel: float) -> float:
    r"""Mean square of what sampling at voxels of `voxel` pixels would take from images ``(n, 1, H, W)``.

    .. math:: P = \frac{1}{HW} \sum_{\max(|k_x|, |k_y|) > 1 / 2v} |\hat x_k|^2

    Parameters
    ----------
    images : Tensor
    voxel : float
        Side in pixels.
    """
    spectrum = torch.fft.rfft2(images, norm="ortho")
    rows, columns = torch.fft.fftfreq(images.shape[-2]), torch.fft.rfftfreq(images.shape[-1])
    lost = torch.maximum(rows[:, None].abs(), columns.abs()) > 0.5 / voxel
    lowpass = torch.fft.irfft2(spectrum * ~lost, s=images.shape[-2:], norm="ortho")
    return float((images - lowpass).square().mean())


def least_timesteps(slices: CaptionedSlices, alphas_cumprod: Tensor, scaling_factor: float) -> Tensor:
    r"""Least timestep that each slice may teach, ``(n,)``: 0 where its scan was fine, or nothing is known of it.

    .. math:: (1 - 1/v^2)\, \sigma_t^2 \ge 50\, P_v, \qquad
        \sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t} / s

    with the power P that the fine slices have where voxels of v pixels show nothing, and the scale s of the latent.
    What a network estimates there is lost in the noise, so that a soft target does not make it soft.

    Parameters
    ----------
    slices : CaptionedSlices
        The fine ones among them tell the power; without any, nothing is held back.
    alphas_cumprod : Tensor ``(T,)``
        Of the noise schedule.
    scaling_factor : float
        Of the autoencoder, whose encoder is orthonormal.
    """
    least = torch.zeros(len(slices), dtype=torch.long)
    coarse = slices.native_pixels > _FINE
    fine = (~coarse).nonzero().flatten()
    if not bool(coarse.any()) or not len(fine):
        return least
    some = fine[torch.linspace(0, len(fine) - 1, min(_FOR_POWER, len(fine))).long()]
    noise = (1 - alphas_cumprod) / alphas_cumprod.clamp_min(1e-12) / scaling_factor**2
    for voxel in slices.native_pixels[coarse].unique().tolist():
        powers = [
            missing_power(slices.images[part].float() / 127.5 - 1, voxel) * len(part) for part in some.split(_AT_ONCE)
        ]
        enough = noise * (1 - 1 / voxel**2) >= _HIDDEN * sum(powers) / len(some)
        first = int(enough.float().argmax()) if bool(enough.any()) else len(noise) - 1
        least[slices.native_pixels == voxel] = first
    return least

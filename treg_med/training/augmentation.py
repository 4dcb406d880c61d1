"""Augmentation of slices on tensors: another shape of head, another intensity curve, a mirror, a crop."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augment", "random_crops"]


def augment(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    *,
    max_angle: float = 0.12,
    max_shift: float = 0.06,
    max_warp: float = 0.03,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random affine map, smooth deformation, mirror and intensity curve of slices in [0, 1].

    Parameters
    ----------
    images, masks : Tensor ``(n, 1, H, W)``
        Floats in [0, 1].
    generator : torch.Generator
        Source of randomness.
    max_angle : float
        Largest rotation in rad.
    max_shift : float
        Largest shift as a share of half the field of view.
    max_warp : float
        Largest standard deviation of a smooth displacement, in the same unit: few subjects, many shapes of head.

    Returns
    -------
    tuple of Tensor
        Images, masks and whether each was mirrored ``(n,)``: the caption's left and right must then be exchanged.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator)).to(device)

    angle = uniform(-max_angle, max_angle)
    zoom = torch.exp(uniform(math.log(0.92), math.log(1.12)))
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -sin, uniform(-max_shift, max_shift)], 1),
            torch.stack([mirror * sin, cos, uniform(-max_shift, max_shift)], 1),
        ],
        1,
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    warp = torch.randn(count, 2, 6, 6, generator=generator).to(device) * uniform(0, max_warp).view(-1, 1, 1, 1)
    warp = functional.interpolate(warp, size=images.shape[-2:], mode="bicubic", align_corners=False)
    grid = grid + warp.permute(0, 2, 3, 1)
    # Half of the slices keep their exact pixels: interpolation removes the noise floor that real data have.
    exact = uniform(0, 1) < 0.5
    warped = functional.grid_sample(images, grid, mode="bicubic", align_corners=False)
    warped_masks = functional.grid_sample(masks, grid, mode="nearest", align_corners=False)
    mirrored = mirror < 0
    flip = mirrored[:, None, None, None]
    straight = torch.where(flip, images.flip(-1), images)
    straight_masks = torch.where(flip, masks.flip(-1), masks)
    choose = exact[:, None, None, None]
    out = torch.where(choose, straight, warped).clamp_(0, 1)
    shift = torch.randint(-8, 9, (2,), generator=generator).tolist()
    out = torch.roll(out, shift, (-2, -1))
    gamma = torch.exp(uniform(-0.15, 0.15))[:, None, None, None]
    gain = uniform(0.85, 1.1)[:, None, None, None]
    moved = torch.roll(torch.where(choose, straight_masks, warped_masks), shift, (-2, -1))
    return gain * out**gamma, moved, mirrored


def random_crops(images: Tensor, masks: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Cut one square of `size` pixels out of each image ``(n, 1, H, W)`` and its mask; shorter sides stay whole.

    Also returns the windows ``(n, 4)``: centre x, centre y, half width and half height, in halves of the longer side.
    """
    height, width = images.shape[-2:]
    longest = max(height, width)
    rows, columns = (
        torch.randint(0, max(side - size, 0) + 1, (len(images),), generator=generator) for side in (height, width)
    )
    cuts = [(..., slice(r, r + size), slice(c, c + size)) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
    half = torch.tensor([min(size, width), min(size, height)]).expand(len(images), -1) / longest
    corner = (2 * torch.stack([columns, rows], 1) - torch.tensor([width, height])) / longest
    return (
        torch.stack([image[cut] for image, cut in zip(images, cuts, strict=True)]),
        torch.stack([mask[cut] for mask, cut in zip(masks, cuts, strict=True)]),
        torch.cat([corner + half, half], 1),
    )

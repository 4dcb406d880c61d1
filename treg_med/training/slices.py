"""Captioned training slices from HDF5, with augmentation on tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from treg_med.training.captions import SliceAttributes, parse_caption

__all__ = ["CaptionedSlices", "augment", "random_crops"]


@dataclass(frozen=True)
class CaptionedSlices:
    """Slices of one split, held in memory.

    Attributes
    ----------
    images : Tensor ``(n, 1, H, W)`` uint8
        0 is background, 255 the upper robust percentile of the slice.
    masks : Tensor ``(n, 1, H, W)`` uint8
        Expert lesion masks, zero where there are none.
    attributes, captions, subjects : list
        One entry per slice.
    weights : Tensor ``(n,)``
        Sampling probability.
    """

    images: Tensor
    masks: Tensor
    attributes: list[SliceAttributes]
    captions: list[str]
    subjects: list[str]
    weights: Tensor

    @classmethod
    def load(
        cls, path: Path, split: str, subjects_only: str = "", focus: str = "ms_", focus_share: float = 0.7
    ) -> CaptionedSlices:
        """Read one split; slices whose subject starts with `focus` are drawn `focus_share` of the time."""
        with h5py.File(path, "r") as file:
            column = {
                name: file[name].asstr()[...]
                for name in ("captions", "contrast", "plane", "finding", "subject", "split")
            }
            keep = np.flatnonzero((column["split"] == split) & [s.startswith(subjects_only) for s in column["subject"]])
            images = torch.from_numpy(file["images"][...][keep])[:, None]
            masks = torch.from_numpy(file["lesion_masks"][...][keep])[:, None]
        rows = {name: values[keep] for name, values in column.items()}
        focused = torch.tensor([s.startswith(focus) for s in rows["subject"]], dtype=torch.bool)
        weights = torch.where(
            focused,
            focus_share / max(int(focused.sum()), 1),
            (1 - focus_share) / max(int((~focused).sum()), 1),
        )
        attributes = [
            parse_caption(*entry)
            for entry in zip(rows["captions"], rows["contrast"], rows["plane"], rows["finding"], strict=True)
        ]
        return cls(images, masks, attributes, list(rows["captions"]), list(rows["subject"]), weights.double())

    def __len__(self) -> int:
        return len(self.images)

    def every(self, step: int) -> CaptionedSlices:
        """Every `step`-th slice."""
        kept = slice(None, None, step)
        return CaptionedSlices(
            self.images[kept],
            self.masks[kept],
            self.attributes[kept],
            self.captions[kept],
            self.subjects[kept],
            self.weights[kept],
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the indices of `count` slices, drawn by weight."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


def augment(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    *,
    max_angle: float = 0.12,
    max_shift: float = 0.06,
) -> tuple[Tensor, Tensor]:
    """Random affine map, mirror and intensity curve of slices in [0, 1].

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
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

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
    # Half of the slices keep their exact pixels: interpolation removes the noise floor that real data have.
    exact = torch.rand(count, generator=generator) < 0.5
    warped = functional.grid_sample(images, grid, mode="bicubic", align_corners=False)
    warped_masks = functional.grid_sample(masks, grid, mode="nearest", align_corners=False)
    flip = (mirror < 0)[:, None, None, None]
    straight = torch.where(flip, images.flip(-1), images)
    straight_masks = torch.where(flip, masks.flip(-1), masks)
    choose = exact[:, None, None, None]
    out = torch.where(choose, straight, warped).clamp_(0, 1)
    shift = torch.randint(-8, 9, (2,), generator=generator).tolist()
    out = torch.roll(out, shift, (-2, -1))
    gamma = torch.exp(uniform(-0.15, 0.15))[:, None, None, None]
    gain = uniform(0.85, 1.1)[:, None, None, None]
    return gain * out**gamma, torch.roll(torch.where(choose, straight_masks, warped_masks), shift, (-2, -1))


def random_crops(
    images: Tensor, masks: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut one square of `size` pixels out of each image ``(n, 1, H, W)`` and its mask; shorter sides stay whole."""
    rows, columns = (
        torch.randint(0, max(side - size, 0) + 1, (len(images),), generator=generator).tolist()
        for side in images.shape[-2:]
    )
    windows = [(..., slice(r, r + size), slice(c, c + size)) for r, c in zip(rows, columns, strict=True)]
    return (
        torch.stack([image[window] for image, window in zip(images, windows, strict=True)]),
        torch.stack([mask[window] for mask, window in zip(masks, windows, strict=True)]),
    )

"""Captioned training slices from HDF5, with augmentation on tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from treg_med.codec import even_margins
from treg_med.errors import FormatError, GeometryError, ResourceError
from treg_med.training.caption_words import UNKNOWN
from treg_med.training.captions import ATTRIBUTES, SliceAttributes, read_attributes

__all__ = ["CaptionedSlices", "augment", "random_crops"]

_DISEASES = {"glioma": "glioma", "meningioma": "meningioma", "pituitary": "pituitary tumour"}


@dataclass(frozen=True)
class CaptionedSlices:
    """Slices of one split, held in memory.

    Attributes
    ----------
    images : Tensor ``(n, 1, H, W)`` uint8
        0 is background, 255 the upper robust percentile of the slice (MR) or the upper end of the window (CT).
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
        cls,
        path: Path,
        split: str,
        subjects_only: str = "",
        *,
        images: str = "images",
        shares: Mapping[str, float] | None = None,
    ) -> CaptionedSlices:
        """Read one split of a slice file.

        Parameters
        ----------
        path : Path
            HDF5 with ``images (N, H, W)`` uint8, ``captions``, ``split`` and, where known, ``subject``, ``contrast``,
            ``plane``, ``finding``, ``region`` and ``lesion_masks (N, H, W)``.
        split : str
            ``train`` or ``val``.
        subjects_only : str
            Keep the subjects whose name starts so.
        images : str
            Dataset of the images; ``images_soft`` holds CT in its soft-tissue window.
        shares : Mapping of str to float, optional
            Start of the subject's name -> share of the draws; other slices share the rest. By default the draws are
            shared evenly among subjects.

        Raises
        ------
        ResourceError
            If the file is not there.
        FormatError
            If it is not such a file.
        """
        if not Path(path).is_file():
            raise ResourceError(f"expected a slice file, got {str(path)!r}, which is not there; write one with prepare")
        try:
            with h5py.File(path, "r") as file:
                rows = _columns(file, len(file[images]))
                keep = np.flatnonzero((rows["split"] == split) & [s.startswith(subjects_only) for s in rows["subject"]])
                pictures = torch.from_numpy(file[images][...][keep])[:, None]
                masks = (
                    torch.from_numpy(file["lesion_masks"][...][keep])[:, None]
                    if "lesion_masks" in file
                    else torch.zeros_like(pictures)
                )
        except (KeyError, OSError) as error:
            raise FormatError(
                f"expected an HDF5 slice file with {images}, captions and split, got {Path(path).name}: {error}"
            ) from error
        if pictures.dtype != torch.uint8 or pictures.ndim != 4:
            raise FormatError(
                f"expected {images} (N, H, W) uint8 in {Path(path).name}, "
                f"got {tuple(pictures[:, 0].shape)} {pictures.dtype}"
            )
        kept = [{name: str(values[i]) for name, values in rows.items()} for i in keep]
        attributes = [_attributes(row, images) for row in kept]
        captions = [row["captions"] + (" Soft-tissue window." if images == "images_soft" else "") for row in kept]
        subjects = [row["subject"] for row in kept]
        return cls(pictures, masks, attributes, captions, subjects, _draw_weights(subjects, shares))

    @classmethod
    def mixed(cls, parts: Sequence[tuple[CaptionedSlices, float]]) -> CaptionedSlices:
        """Join slice files, each drawn as often as its share tells.

        Raises
        ------
        GeometryError
            If their image sizes differ.
        """
        sizes = {tuple(part.images.shape[-2:]) for part, _ in parts}
        if len(sizes) > 1:
            raise GeometryError(f"expected slices of one size in all files, got {sorted(sizes)}; prepare them again")
        total = sum(share for _, share in parts)
        return cls(
            torch.cat([part.images for part, _ in parts]),
            torch.cat([part.masks for part, _ in parts]),
            [a for part, _ in parts for a in part.attributes],
            [c for part, _ in parts for c in part.captions],
            [s for part, _ in parts for s in part.subjects],
            torch.cat([part.weights * share / total for part, share in parts]),
        )

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

    def padded(self, multiple: int) -> CaptionedSlices:
        """Fill the sides up with background to multiples of `multiple`, as evenly as possible."""
        margins = even_margins(self.images.shape[-2], self.images.shape[-1], multiple)
        if not any(margins):
            return self
        return replace(self, images=functional.pad(self.images, margins), masks=functional.pad(self.masks, margins))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the indices of `count` slices, drawn by weight."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


def _columns(file: h5py.File, count: int) -> dict[str, np.ndarray]:
    """Text columns of a slice file; optional ones are filled up."""
    optional = {"subject": "", "contrast": UNKNOWN, "plane": UNKNOWN, "finding": UNKNOWN, "region": UNKNOWN}
    columns = {name: file[name].asstr()[...] for name in ("captions", "split")}
    for name, default in optional.items():
        columns[name] = file[name].asstr()[...] if name in file else np.full(count, default, dtype=object)
    if "contrast_agent" in file:
        columns["agent"] = file["contrast_agent"].asstr()[...]
    for name, values in columns.items():
        if len(values) != count:
            raise FormatError(f"expected {count} entries of {name}, one per image, got {len(values)}")
    return columns


def _attributes(row: Mapping[str, str], images: str) -> SliceAttributes:
    """Attributes from the caption and, before it, from the columns, where they know the grammar's values."""
    said = read_attributes(row["captions"])
    known: dict[str, str] = {
        name: row[name]
        for name in ("contrast", "plane", "region", "agent")
        if name in row and row[name] != UNKNOWN and row[name] in ATTRIBUTES[name]
    }
    finding = row["finding"]
    if finding in _DISEASES:
        known["disease"] = _DISEASES[finding]
    elif finding.startswith("ms_"):
        known["disease"] = "multiple sclerosis"
        if finding == "ms_no_lesion_in_slice":
            known["lesions"] = "none"
    if said.modality == "CT":
        known["window"] = "soft tissue" if images == "images_soft" else "wide"
    return replace(said, **known)  # type: ignore[arg-type]


def _draw_weights(subjects: Sequence[str], shares: Mapping[str, float] | None) -> Tensor:
    """Probability of each slice ``(n,)``: by share of its group, evenly within; without shares evenly by subject."""
    groups = [next((p for p in shares if s.startswith(p)), "") for s in subjects] if shares else list(subjects)
    rest = 1 - sum(shares.values()) if shares else 0.0
    present = set(groups)
    share = {g: shares.get(g, rest) if shares else 1.0 for g in present}
    total = sum(share.values()) or 1.0
    counts = {g: groups.count(g) for g in present}
    return torch.tensor([share[g] / total / counts[g] for g in groups], dtype=torch.float64)


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

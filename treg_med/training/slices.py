"""Captioned training slices from HDF5, held in memory and drawn by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from treg_med.codec import even_margins
from treg_med.data.hdf5_reader import text_attribute
from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError
from treg_med.training.slice_columns import read_columns, slice_attributes
from treg_med.training.slice_orientation import SIDES, patient_left_is
from treg_med.words.captions import SliceAttributes

__all__ = ["CaptionedSlices"]

#: As many pixels inside masks tell whether their last bit was lost.
_LEAST_PIXELS = 1000


@dataclass(frozen=True)
class CaptionedSlices:
    """Slices of one split, held in memory, in the radiological convention.

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
    native_pixels : Tensor ``(n,)``
        Coarsest in-plane voxel of the scan that a slice was cut from, in pixels; NaN where it is not known.
    notes : tuple of str
        What was found out about the files on reading.
    """

    images: Tensor
    masks: Tensor
    attributes: list[SliceAttributes]
    captions: list[str]
    subjects: list[str]
    weights: Tensor
    native_pixels: Tensor = field(default_factory=lambda: torch.zeros(0))
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill up what nothing is known of."""
        if len(self.native_pixels) < len(self.images):
            object.__setattr__(self, "native_pixels", torch.full((len(self.images),), torch.nan))

    @classmethod
    def load(
        cls,
        path: Path,
        split: str,
        subjects_only: str = "",
        *,
        subjects_except: Sequence[str] = (),
        images: str = "images",
        shares: Mapping[str, float] | None = None,
        patient_left: str = "",
    ) -> CaptionedSlices:
        """Read one split of a slice file.

        Parameters
        ----------
        path : Path
            HDF5 with ``images (N, H, W)`` uint8, ``captions``, ``split`` and, where known, ``subject``, ``contrast``,
            ``plane``, ``finding``, ``region``, ``contrast_agent``, ``lesion_masks (N, H, W)``, ``lesion_side``,
            ``lesion_territory``, ``lesion_area_mm2``, ``native_spacing_mm``, ``pixel_spacing_mm``, ``age_years`` and
            ``sex``.
        split : str
            ``train`` or ``val``.
        subjects_only : str
            Keep the subjects whose name starts so.
        subjects_except : sequence of str
            Leave the subjects out whose name starts with one of these.
        images : str
            Dataset of the images; ``images_soft`` holds CT in its soft-tissue window.
        shares : Mapping of str to float, optional
            Start of the subject's name -> share of the draws; other slices share the rest. Within a group the draws
            are shared evenly among subjects, and a subject's among its contrasts, planes and levels.
        patient_left : str
            Side of the images that shows the patient's left, "left" or "right", where the file does not say.

        Raises
        ------
        ResourceError
            If the file is not there.
        FormatError
            If it is not such a file, or says one thing and shows another.
        ConfigError
            If no subject has a name that was asked for.
        """
        if not Path(path).is_file():
            raise ResourceError(f"expected a slice file, got {str(path)!r}, which is not there; write one with prepare")
        name = Path(path).name
        try:
            with h5py.File(path, "r") as file:
                columns = read_columns(file, len(file[images]), name)
                _check_subjects(columns["subject"], [subjects_only, *subjects_except, *(shares or ())], name)
                keep = np.flatnonzero(
                    (columns["split"] == split)
                    & [
                        s.startswith(subjects_only) and not s.startswith(tuple(subjects_except))
                        for s in columns["subject"]
                    ]
                )
                pictures = torch.from_numpy(file[images][...][keep])[:, None]
                masks = (
                    torch.from_numpy(file["lesion_masks"][...][keep])[:, None]
                    if "lesion_masks" in file
                    else torch.zeros_like(pictures)
                )
                told = text_attribute(file.attrs, "patient_left_is") or patient_left
        except (KeyError, OSError) as error:
            raise FormatError(
                f"expected an HDF5 slice file with {images}, captions and split, got {name}: {error}"
            ) from error
        _check_pixels(pictures, masks, images, name)
        if told not in ("", *SIDES):
            raise FormatError(f"expected patient_left_is to be left or right for {name}, got {told!r}")
        rows: list[dict[str, Any]] = [{column: values[i] for column, values in columns.items()} for i in keep]
        attributes = [slice_attributes(row, images) for row in rows]
        subjects = [str(row["subject"]) for row in rows]
        side, note = patient_left_is(pictures, masks, attributes, told, name)
        if side == "left":
            pictures, masks = pictures.flip(-1), masks.flip(-1)
        return cls(
            _with_last_bit(pictures, masks),
            masks,
            attributes,
            [str(row["captions"]) + (" Soft-tissue window." if images == "images_soft" else "") for row in rows],
            subjects,
            _draw_weights(subjects, attributes, shares),
            torch.tensor([row["native_spacing_mm"] / row["pixel_spacing_mm"] for row in rows], dtype=torch.float32),
            (note,) if note else (),
        )

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
            torch.cat([part.native_pixels for part, _ in parts]),
            tuple(dict.fromkeys(note for part, _ in parts for note in part.notes)),
        )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int]) -> CaptionedSlices:
        """Return the slices of some rows."""
        chosen = list(rows)
        return CaptionedSlices(
            self.images[chosen],
            self.masks[chosen],
            [self.attributes[i] for i in chosen],
            [self.captions[i] for i in chosen],
            [self.subjects[i] for i in chosen],
            self.weights[chosen],
            self.native_pixels[chosen],
            self.notes,
        )

    def by_group(self) -> dict[str, CaptionedSlices]:
        """Return the slices of every disease by its name, those of CT as a group of their own."""
        groups: dict[str, list[int]] = {}
        for row, a in enumerate(self.attributes):
            groups.setdefault("CT" if a.modality == "CT" else a.disease, []).append(row)
        return {name: self.take(rows) for name, rows in sorted(groups.items())}

    def evenly(self, count: int) -> CaptionedSlices:
        """At most `count` evenly spaced slices."""
        total = len(self)
        return self if count >= total else self.take([int((k + 0.5) * total / count) for k in range(count)])

    def every(self, step: int) -> CaptionedSlices:
        """Every `step`-th slice."""
        return self.take(range(0, len(self), step))

    def padded(self, multiple: int) -> CaptionedSlices:
        """Fill the sides up with background to multiples of `multiple`, as evenly as possible."""
        margins = even_margins(self.images.shape[-2], self.images.shape[-1], multiple)
        if not any(margins):
            return self
        return replace(self, images=functional.pad(self.images, margins), masks=functional.pad(self.masks, margins))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the indices of `count` slices, drawn by weight."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


def _check_pixels(pictures: Tensor, masks: Tensor, images: str, name: str) -> None:
    if pictures.dtype != torch.uint8 or pictures.ndim != 4:
        raise FormatError(
            f"expected {images} (N, H, W) uint8 in {name}, got {tuple(pictures[:, 0].shape)} {pictures.dtype}"
        )
    if masks.shape != pictures.shape:
        raise FormatError(
            f"expected lesion_masks like the images of {name}, {tuple(pictures.shape)}, got {tuple(masks.shape)}"
        )


def _check_subjects(subjects: np.ndarray, asked: Sequence[str], name: str) -> None:
    for start in asked:
        if not any(subject.startswith(start) for subject in subjects):
            raise ConfigError(f"expected subjects of {name} whose name starts with {start!r}, got none")


def _with_last_bit(images: Tensor, masks: Tensor) -> Tensor:
    """Give pixels inside masks their last bit back, at random, where it was lost: all of them are even there.

    Else a network learns that lesions have half the grey levels.
    """
    inside = masks > 0
    if int(inside.sum()) < _LEAST_PIXELS or bool((images[inside] % 2).any()):
        return images
    bits = torch.randint(0, 2, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.where(inside, images + bits, images)


def _draw_weights(
    subjects: Sequence[str], attributes: Sequence[SliceAttributes], shares: Mapping[str, float] | None
) -> Tensor:
    """Probability of each slice ``(n,)``: by group, subject, and contrast, plane and level; evenly within each."""
    groups = [next((p for p in shares if s.startswith(p)), "") for s in subjects] if shares else [""] * len(subjects)
    rest = 1 - sum(shares.values()) if shares else 1.0
    share = {group: shares.get(group, rest) if shares else 1.0 for group in set(groups)}
    total = sum(share.values()) or 1.0
    views = [(s, a.contrast, a.plane, a.level) for s, a in zip(subjects, attributes, strict=True)]
    subjects_of = Counter(group for group, _ in set(zip(groups, subjects, strict=True)))
    views_of, slices_of = Counter(view[0] for view in set(views)), Counter(views)
    return torch.tensor(
        [
            share[group] / total / subjects_of[group] / views_of[view[0]] / slices_of[view]
            for group, view in zip(groups, views, strict=True)
        ],
        dtype=torch.float64,
    )

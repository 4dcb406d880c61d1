"""Draws slices of label maps: which map, plane, contrast and lesion, and the words for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from treg_med.errors import GeometryError, ResourceError
from treg_med.training.label_heads.lesions import CarriedLesion, LesionMask, load_all_plaques, load_infarcts
from treg_med.training.label_heads.maps import HeadMap, load_maps
from treg_med.training.label_heads.planes import NORMAL_AXIS, PLANES, Cut, draw_cut
from treg_med.training.label_heads.rendering import render
from treg_med.training.label_heads.tissues import BRAIN, CONTRASTS, PLAQUE_BED, TISSUES, index_of
from treg_med.training.phantoms import PhantomBatch
from treg_med.words.captions import SliceAttributes, count_word, size_word
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["LabelHeads"]

_STRIPPED_SHARE = 0.4
_INFARCT_SHARE = 0.65  # the other lesions are plaques
#: Of twins of a head with an infarct on one side, the share with it on the other; the rest has none.
_OTHER_SIDE_SHARE = 0.7
_LEAST_AREA = {"infarct": 20.0, "plaque": 10.0}
_LEAST_PLAQUE = 3.0  # mm2
_RIM = 2.0  # mm
_ONE_SIDED = 0.8
_TRIES = 60
#: plane -> share of the brain's extent at its two ends that is not drawn
_ENDS = {"axial": 0.06, "coronal": 0.08, "sagittal": 0.10}
_BED = {"infarct": index_of(*BRAIN), "plaque": index_of(*PLAQUE_BED)}


@dataclass(frozen=True)
class _Lesion:
    """A lesion in a slice: its share of every pixel ``(H, W)``, what it is, and the words for it."""

    cover: NDArray[np.float32]
    kind: str
    words: dict[str, Any]

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.cover > 0.5


class LabelHeads:
    """Heads and lesions from which slices with exact words are drawn.

    Parameters
    ----------
    maps : sequence of HeadMap
        Label maps.
    infarcts, plaques : sequence of LesionMask
        Lesions of stroke and of multiple sclerosis.
    """

    def __init__(
        self, maps: Sequence[HeadMap], infarcts: Sequence[LesionMask] = (), plaques: Sequence[LesionMask] = ()
    ) -> None:
        self.maps = tuple(maps)
        self.lesions = {"infarct": tuple(infarcts), "plaque": tuple(plaques)}

    @classmethod
    def load(cls, folder: Path, leave_out: Collection[str] = ()) -> LabelHeads:
        """Read the maps and the lesion masks under a folder.

        Parameters
        ----------
        folder : Path
            With ``*/labels.json`` and NIfTI maps beside it, ``*/*.h5`` with stroke masks, of which those of the split
            "train" are read, and ``*/*lesions*.nii.gz`` with masks of multiple sclerosis.
        leave_out : collection of str
            Patients whose masks are not read, as their names say between underscores: those of validation sets.

        Raises
        ------
        ResourceError
            Without maps, or without a ``labels.json``.
        FormatError
            For unknown codes, a map that is not 3-D integer, or stroke masks that lack fields.
        GeometryError
            For an affine that cannot be inverted or voxels that are not 1 mm.
        """
        folder = Path(folder)
        infarcts = [mask for path in sorted(folder.glob("*/*.h5")) for mask in load_infarcts(path)]
        return cls(load_maps(folder), infarcts, load_all_plaques(folder, leave_out))

    def draw(
        self,
        count: int,
        size: tuple[int, int] = (256, 256),
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str = "cpu",
        lesion_share: float = 0.7,
        twins: bool = False,
    ) -> PhantomBatch:
        """Draw slices of random head, plane, level, contrast and lesion.

        Parameters
        ----------
        count : int
            Number of slices.
        size : tuple of int
            (H, W); 256 mm along the longer side.
        generator : torch.Generator, optional
            CPU generator; the same state gives the same slices.
        device : torch.device or str
            Where the images are put; they are computed on the CPU.
        lesion_share : float
            Share of slices with a lesion; the others say that they have none.
        twins : bool
            Draw `count` slices more: the same heads pixel by pixel, noise and scale included, with the infarct on the
            other side, without the lesion, or with one where there was none.

        Raises
        ------
        ResourceError
            If lesions are to be drawn and there are no masks.
        GeometryError
            If no mask lies in the brain of any map.
        """
        if not any(self.lesions.values()) and (twins or lesion_share > 0) and count:
            raise ResourceError(
                f"expected lesion masks for lesion_share={lesion_share} and twins={twins}, got none; put *.h5 or "
                f"*lesions*.nii.gz masks beside the maps, or draw with lesion_share=0"
            )
        generator = generator or torch.Generator().manual_seed(0)
        seeds = torch.randint(2**62, (count,), generator=generator).tolist()
        images = torch.zeros((1 + twins) * count, 1, *size)
        masks = torch.zeros_like(images)
        attributes: list[SliceAttributes] = [SliceAttributes()] * len(images)
        for number, seed in enumerate(seeds):
            drawn = self._draw_one(size, np.random.default_rng(seed), lesion_share, twins)
            for place, (image, mask, words) in zip((number, number + count), drawn, strict=False):
                images[place, 0], masks[place, 0] = torch.from_numpy(image), torch.from_numpy(mask)
                attributes[place] = words
        return PhantomBatch(images.to(device), masks.to(device), attributes)

    def _draw_one(
        self, size: tuple[int, int], rng: np.random.Generator, lesion_share: float, twins: bool
    ) -> list[tuple[NDArray[np.float32], NDArray[np.bool_], SliceAttributes]]:
        """Image, mask and words of a slice, and of its twin."""
        look, place, choice = rng.spawn(3)
        contrast = str(choice.choice(list(CONTRASTS), p=list(CONTRASTS.values())))
        shown = choice.random() < lesion_share
        plane = str(choice.choice(list(PLANES), p=list(PLANES.values())))
        stripped = choice.random() < _STRIPPED_SHARE
        other_side = choice.random() < _OTHER_SIDE_SHARE
        if shown or twins:
            head, cut, tissues, pivot, lesion, mirrored = self._with_lesion(plane, stripped, size, place)
        else:
            head = self._any_head(stripped, place)
            pivot = _any_pivot(head, plane, place)
            cut = draw_cut(head, plane, pivot, size, place)
            tissues, lesion, mirrored = cut.tissues(head), None, None
        stripped = stripped or not head.whole
        known = SliceAttributes(
            origin="simulated", modality="MRI", contrast=contrast, plane=plane,
            skull="stripped" if stripped else "whole",
            level=_level(head, cut, pivot) if plane == "axial" else UNKNOWN,
        )  # fmt: skip
        versions = [lesion if shown else None]
        if twins:
            versions.append(None if shown else lesion)
            if shown and other_side and mirrored:
                versions[1] = mirrored
        blank = np.zeros(size, dtype=np.float32)
        covers = [(v.cover, v.kind) if v else (blank, "infarct") for v in versions]
        images = render(head, cut, tissues, covers, contrast, stripped, look)
        words = [_described(known, v) for v in versions]
        if twins and lesion and lesion.kind == "plaque":  # one word differs: the patient stays the same
            words = [replace(w, disease=words[0].disease) for w in words]
        return [(image, c > 0.5, w) for image, (c, _), w in zip(images, covers, words, strict=True)]

    def _any_head(self, stripped: bool, rng: np.random.Generator) -> HeadMap:
        """Any map for a stripped brain, one with a skull for a whole head where there is one."""
        able = [head for head in self.maps if stripped or head.whole] or self.maps
        return able[rng.integers(len(able))]

    def _with_lesion(
        self, plane: str, stripped: bool, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[HeadMap, Cut, NDArray[np.uint8], NDArray[np.float64], _Lesion, _Lesion | None]:
        """Choose a head and a lesion that shows in a slice of it; the last is the lesion on the other side, if it can.

        Masks that lie outside the brain of the map, or too small in it, are passed over.
        """
        kinds = [kind for kind, masks in self.lesions.items() if masks]
        for _ in range(_TRIES):
            head = self._any_head(stripped, rng)
            kind = kinds[0] if len(kinds) == 1 else kinds[int(rng.random() >= _INFARCT_SHARE)]
            mask = self.lesions[kind][rng.integers(len(self.lesions[kind]))]
            carried = CarriedLesion.carry(mask, head.cerebrum)
            pivot = _pivot_in(carried, kind, head, plane, rng)
            if pivot is None:
                continue
            cut = draw_cut(head, plane, pivot, size, rng)
            tissues = cut.tissues(head)
            lesion = _lesion_in(cut, tissues, carried, kind, head, plane)
            if lesion is None:
                continue
            other = None
            if lesion.words.get("side") in ("left", "right"):
                mirrored = CarriedLesion.carry(mask, head.cerebrum, mirrored=True)
                other = _lesion_in(cut, tissues, mirrored, kind, head, plane)
                exchanged = {**lesion.words, "side": "left" if lesion.words["side"] == "right" else "right"}
                if other and other.words != exchanged:
                    other = None
            return head, cut, tissues, pivot, lesion, other
        raise GeometryError(
            f"expected lesion masks that lie in the brain of the maps, {_TRIES} draws in a row showed none in a "
            f"{plane} slice; check that masks are in MNI space and maps are labelled by labels.json"
        )


def _any_pivot(head: HeadMap, plane: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Middle of the brain at a random level."""
    pivot = head.brain.mean(0)
    axis = NORMAL_AXIS[plane]
    share = rng.uniform(_ENDS[plane], 1 - _ENDS[plane])
    pivot[axis] = head.brain[0, axis] + share * (head.brain[1, axis] - head.brain[0, axis])
    return pivot


def _pivot_in(
    carried: CarriedLesion, kind: str, head: HeadMap, plane: str, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """Middle of the lesion at a random one of the levels that it shows at; none if it shows at none."""
    places = carried.places()
    step = max(1, len(places) // 20000)
    places = places[::step]
    nearest = np.clip(np.rint(places).astype(np.intp), 0, np.array(head.tissues.shape) - 1)
    places = places[np.isin(head.tissues[tuple(nearest.T)], _BED[kind])]
    if not len(places):
        return None
    axis = NORMAL_AXIS[plane]
    levels = np.rint(places[:, axis]).astype(int)
    # A voxel of the mask fills 1 / scale voxels of the map.
    areas = np.bincount(levels) * step / np.abs(carried.scale).prod()
    enough = np.flatnonzero(areas >= 1.3 * _LEAST_AREA[kind])
    if not len(enough):
        return None
    level = enough[rng.integers(len(enough))]
    pivot: NDArray[np.float64] = places[levels == level].mean(0)
    return pivot


def _lesion_in(
    cut: Cut, tissues: NDArray[np.uint8], carried: CarriedLesion, kind: str, head: HeadMap, plane: str
) -> _Lesion | None:
    """Lesion in a slice and the words for it; none if too little of it shows."""
    allowed = np.zeros(len(TISSUES), dtype=bool)
    allowed[_BED[kind]] = True
    inside = np.stack([carried.at(points) for points in cut.layers()]) & allowed[tissues]
    cover = cut.averaged(inside.astype(np.float32))
    cover = ndimage.gaussian_filter(cover, 0.7 / cut.pitch, truncate=3.0)
    mask = cover > 0.5
    # What is too faint for the mask goes, unless it is the rim of what is in it.
    cover = cover * ndimage.maximum_filter(mask, 2 * round(_RIM / cut.pitch) + 1)
    area = float(mask.sum()) * cut.pitch**2
    if area < _LEAST_AREA[kind]:
        return None
    if kind == "plaque":
        parts, _ = ndimage.label(mask, np.ones((3, 3)))
        count = int((np.bincount(parts.ravel())[1:] * cut.pitch**2 >= _LEAST_PLAQUE).sum())
        words = {"disease": "multiple sclerosis", "lesions": count_word(max(count, 1))}
        return _Lesion(cover, kind, words)
    words = {"lesion": "infarct", "size": size_word(area)}
    if plane != "sagittal":
        a, b, c, d = head.midplane
        x, y, z = cut.middle(cut.points)
        right = float(((a * x + b * y + c * z + d) > 0)[mask].mean())
        if max(right, 1 - right) >= _ONE_SIDED:
            words["side"] = "right" if right > 0.5 else "left"
    return _Lesion(cover, kind, words)


def _level(head: HeadMap, cut: Cut, pivot: NDArray[np.float64]) -> str:
    """Third of the brain's height in which a slice passes through the brain's middle axis."""
    x, y, _ = head.brain.mean(0) - pivot
    height = pivot[2] - (x * cut.normal[0] + y * cut.normal[1]) / cut.normal[2]
    share = (height - head.brain[0, 2]) / (head.brain[1, 2] - head.brain[0, 2])
    return ("lower", "middle", "upper")[min(max(int(3 * share), 0), 2)]


def _described(known: SliceAttributes, lesion: _Lesion | None) -> SliceAttributes:
    return replace(known, **lesion.words) if lesion else replace(known, lesions="none")

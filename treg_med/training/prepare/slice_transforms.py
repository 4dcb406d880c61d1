"""From a scan on disk to upright, square, 8-bit slices: MONAI dictionary transforms.

An item has ``image`` and, where there is one, ``mask``: paths at first, then tensors ``(slices, rows, columns)``, to
MONAI a two-dimensional image with slices for channels. `load_upright` reads and turns, `to_square_slices` does the
rest; what was found out on the way joins the item: ``pixel_mm``, ``modality``, ``foreground``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, LoadImaged, MapTransform, Resize, ResizeWithPadOrCrop, ScaleIntensityRange
from torch import Tensor

from treg_med.data.orientation import choose_slice_axis, oriented_geometry, plane_of, to_images
from treg_med.errors import FormatError, GeometryError, NumericsError, ResourceError, TregMedError
from treg_med.training.prepare.scan_reader import TrainingScanReader

__all__ = [
    "CT_WINDOW",
    "as_typed_errors",
    "cannot_be_cut",
    "load_upright",
    "looks_like_hounsfield",
    "to_square_slices",
]

#: Hounsfield units shown as 0 and 255.
CT_WINDOW = (-1000.0, 1000.0)

_KEYS = ("image", "mask")
_PERCENTILE = 0.997
# Of the robust maximum: what is darker is air and noise.
_FOREGROUND = 0.1
_BODY_HU = -500.0
# Air is at -1000 HU, padding down to -3024; phase images reach -4096, interpolated magnitudes a little below 0.
_LOWEST_HU, _AIR_HU = -3100.0, -200.0
_MOST_NEGATIVE = 0.2
# Rows with less foreground than this share are specks and do not widen the picture.
_SPECK = 0.01
_SAME_SPACING = 0.02
_COARSEST_TO_FINEST = 3.0
_SHORTEST_SIDE = 16
_MOST_VALUES = 2_000_000
_AFFINE_TOLERANCE_MM = 0.05


def load_upright() -> Compose:
    """Read an item and turn it upright, cut along its ``plane``; HDF5 stacks and pictures stay as they are.

    Adds ``spacing_mm`` (row, column; NaN where unknown), ``known``, whether the file says where the patient's left is,
    and ``own_plane``, the plane in which a volume has its finest pixels; "" for stacks.
    """
    with _without_advice():
        reader = LoadImaged(_KEYS, reader=TrainingScanReader(), image_only=True, allow_missing_keys=True)
    return Compose([reader, _Uprightd(_KEYS, allow_missing_keys=True)])


def to_square_slices(size: int, window: tuple[float, float] | None) -> Compose:
    """Bring an upright item to 0..255, keep its slices ``kept``, square its pixels, and fit it to ``size``.

    MR: 0 to the 99.7 percentile of the object. Hounsfield units, recognised by their air: ``window``, by default
    `CT_WINDOW`. An item may state its ``units``: "HU", or "grey levels", which stay as they are. ``image`` becomes
    uint8 ``(kept, size, size)``, ``mask`` 0 or 1; ``foreground`` is the share of each slice that is no air ``(kept,)``.
    """
    return Compose([_GreyLevelsd(window), _Keptd(_KEYS, allow_missing_keys=True), _SquarePixelsd(size), _Bytesd()])


def cannot_be_cut(item: Mapping[str, Any]) -> bool:
    """Whether slices of a loaded item would be blurred (pixels of 1:3 and more) or a few pixels high."""
    spacing = item["spacing_mm"]
    coarse = max(spacing) > _COARSEST_TO_FINEST * min(spacing)
    return bool(item["own_plane"]) and (coarse or min(item["image"].shape[-2:]) < _SHORTEST_SIDE)


@contextmanager
def as_typed_errors(name: str) -> Iterator[None]:
    """Turn MONAI's errors back into the typed ones that caused them, with the name of the scan in front."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, TregMedError | MemoryError):
            cause = cause.__cause__
        if isinstance(cause, MemoryError):
            raise ResourceError(f"{name}: not enough memory for one scan; crop it or split it") from error
        if cause is None:
            raise
        raise type(cause)(f"{name}: {cause}") from error


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence what `LoadImage` says about decoders of formats that are not read here."""
    logger = logging.getLogger()
    before = logger.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Uprightd(MapTransform):
    """Stored volumes (i, j, k) to upright slices (slice, row, column) of the item's ``plane``."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        meta = item["image"].meta
        item |= {"known": bool(meta["known"]), "own_plane": ""}
        _check_same_grid(item)
        if meta["is_stack"]:
            item["spacing_mm"] = (float(meta["pixel_spacing_mm"]),) * 2
            return item | {key: item[key].as_tensor() for key in self.key_iterator(item)}
        affine = meta["affine"].numpy()
        item["own_plane"] = plane_of(affine, choose_slice_axis(affine))
        axis = next(a for a in range(3) if plane_of(affine, a) == item["plane"])
        geometry = oriented_geometry(affine, tuple(item["image"].shape), axis)
        item["spacing_mm"] = geometry.spacing_mm[:2]
        for key in self.key_iterator(item):
            images = to_images(item[key].as_tensor().numpy(), geometry)
            item[key] = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, 2, 0)))
        return item


def _check_same_grid(item: Mapping[str, Any]) -> None:
    if "mask" not in item:
        return
    image, mask = item["image"], item["mask"]
    same_shape = image.shape == mask.shape
    apart = (image.meta["affine"] - mask.meta["affine"]).abs().max()
    if not same_shape or apart > _AFFINE_TOLERANCE_MM:
        raise GeometryError(
            f"expected the mask on the grid of its scan, {tuple(image.shape)}, got {tuple(mask.shape)}"
            + (f" with an affine that differs by {apart:.3g} mm; " if same_shape else "; ")
            + "resample the mask with nearest neighbours"
        )


class _GreyLevelsd(MapTransform):
    """Image values to 0..255 as float32; adds ``modality`` and ``object``, a mask of what is no air."""

    def __init__(self, window: tuple[float, float] | None) -> None:
        super().__init__(("image",))
        self._window = window

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        values = item["image"]
        low, high = float(values.min()), float(values.max())
        units = item.get("units") or ("HU" if looks_like_hounsfield(low) else "unknown")
        item["modality"] = "CT" if units == "HU" or item["says_ct"] else "MRI"
        if units == "HU":
            ends = self._window or CT_WINDOW
        elif units == "grey levels":
            ends = (0.0, 255.0)
        else:
            ends = (0.0, _checked_level(values, low, high, is_ct=item["says_ct"]))
        item["object"] = values > (_BODY_HU if units == "HU" else _FOREGROUND * ends[1])
        item["image"] = ScaleIntensityRange(*ends, b_min=0.0, b_max=255.0, clip=True)(values)
        return item


def looks_like_hounsfield(low: float) -> bool:
    """Whether values that start at ``low`` are Hounsfield units."""
    return _LOWEST_HU <= low <= _AIR_HU


def _checked_level(values: Tensor, low: float, high: float, *, is_ct: bool) -> float:
    """Level shown as 255 of values that are not Hounsfield units."""
    if low < -_MOST_NEGATIVE * high:
        raise FormatError(
            f"expected an MR magnitude (>= 0) or CT in Hounsfield units, got values from {low:g} to {high:g}; "
            "undo the normalisation, or leave phase and maps out"
        )
    if not is_ct:
        return _upper_level(values, high)
    if high > 255:
        raise FormatError(
            f"expected CT in Hounsfield units or 8-bit grey levels, got values from {low:g} to {high:g}; apply the "
            "rescale slope and intercept"
        )
    # Grey levels of CT were windowed by whoever stored them.
    return 255.0


def _upper_level(values: Tensor, high: float) -> float:
    """99.7 percentile of the object: of what is above a tenth of the robust maximum."""
    if high <= 0:
        raise NumericsError(f"expected a scan with something in it, got a maximum of {high:g}; delete it")
    # An even selection: the percentile of two million values is exact enough.
    flat = values.flatten()[:: 1 + values.numel() // _MOST_VALUES].numpy()
    positive = flat[flat > 0]
    if not len(positive):
        return high
    inside = positive[positive > _FOREGROUND * np.quantile(positive, _PERCENTILE)]
    return float(np.quantile(inside, _PERCENTILE))


class _Keptd(MapTransform):
    """Only the slices that go into the file; ``extent`` is the object's in all of them, as the scan is shown once."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        item["extent"] = tuple(_extent(item["object"].float().mean(axis)) for axis in (2, 1))
        for key in (*self.key_iterator(item), "object"):
            item[key] = item[key][item["kept"]]
        return item


def _extent(shares: Tensor) -> tuple[int, int]:
    """First and one past the last position where any slice has an object, of shares ``(slices, positions)``."""
    filled = torch.nonzero(shares.amax(0) >= _SPECK).flatten().tolist()
    return (filled[0], filled[-1] + 1) if filled else (0, shares.shape[1])


class _SquarePixelsd(MapTransform):
    """Resample to square pixels and fit to (size, size): air is cut or added, the object never cut.

    Pixels are the finer of the two spacings, or as coarse as the object needs to fit.
    """

    def __init__(self, size: int) -> None:
        super().__init__(_KEYS, allow_missing_keys=True)
        self._size = size

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        shape = tuple(item["image"].shape[-2:])
        spacing = [1.0 if np.isnan(s) else s for s in item["spacing_mm"]]
        needed = max((b - a) * s for (a, b), s in zip(item["extent"], spacing, strict=True)) / self._size
        pixel = max(min(spacing), needed)
        zooms = [s / pixel for s in spacing]
        if max(abs(zoom - 1) for zoom in zooms) < _SAME_SPACING and needed <= min(spacing):
            zooms = [1.0, 1.0]
        target = tuple(max(1, round(n * zoom)) for n, zoom in zip(shape, zooms, strict=True))
        resize = Resize(target, mode="bilinear", align_corners=False, anti_aliasing=True)
        windows = [
            _window(n, self._size, round(a * z), round(b * z))
            for n, z, (a, b) in zip(target, zooms, item["extent"], strict=True)
        ]
        pad = ResizeWithPadOrCrop((self._size, self._size), mode="constant", value=0)
        for key in self.key_iterator(item):
            values = item[key] if key == "image" else (item[key] != 0).float()
            if target != shape:
                values = resize(values)
            item[key] = torch.as_tensor(pad(values[:, windows[0], windows[1]]))
        area = self._size**2 / (zooms[0] * zooms[1])
        item["foreground"] = item["object"].sum((1, 2)) / area
        item["pixel_mm"] = float("nan") if np.isnan(item["spacing_mm"][0]) else pixel
        return item


def _window(length: int, size: int, first: int, last: int) -> slice:
    """Return ``size`` of ``length`` positions, from the middle or as far from it as first..last asks for."""
    if length <= size:
        return slice(0, length)
    start = (length - size) // 2
    start = max(min(start, first), last - size)
    start = max(0, min(start, length - size))
    return slice(start, start + size)


class _Bytesd(MapTransform):
    """Image and mask as uint8."""

    def __init__(self) -> None:
        super().__init__(_KEYS, allow_missing_keys=True)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        item["image"] = item["image"].round().clamp(0, 255).to(torch.uint8)
        if "mask" in item:
            # A pixel is in the lesion if most of it is.
            item["mask"] = (item["mask"] >= 0.5).to(torch.uint8)
        return item

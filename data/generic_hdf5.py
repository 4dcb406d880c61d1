"""Raw k-space in HDF5: the project's own simple layout, and any file with a dataset called ``kspace``.

Datasets:

- ``kspace``: (slice, coil, ky, kx), (coil, ky, kx) or (ky, kx), complex; DC at index n // 2 and an
orthonormal
  transform, image = fftshift(ifft2(ifftshift(k)));
- ``mask`` (optional): (ky, kx) or (kx,), 1 where k-space was sampled and 0 elsewhere;
- ``sensitivity_maps`` (optional): (slice, coil, y, x) or (coil, y, x), complex;
- ``target`` (optional): (slice, y, x) or (y, x), reference image, real or complex.

Attributes of the file, all optional: ``noise_std`` (units of k-space, E|n|^2 = noise_std^2 per sample),
``modality``, ``anatomy``, ``contrast``, ``plane`` (whitelisted words), ``description``, ``simulated`` (bool),
``operations`` (JSON list of what was done), ``affine`` (4, 4), ``storage`` (3, 2), ``sform_code``,
``qform_code``, ``xyzt_units`` as in `Geometry`, ``display_rot90`` and ``display_flip``: how the raw image is
turned to be upright. ``layout = "treg_med_kspace"`` and ``layout_version = 1`` mark files written by
`simulate_scan`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import Tensor

from treg_med.data.assemble import INVERSE_CRIME, assemble_measurement, check_finite, check_mask
from treg_med.data.hdf5_reader import (
    Hdf5Reader,
    Undersampling,
    check_kspace,
    number_attribute,
    reference_image,
    single_precision,
    text_attribute,
)
from treg_med.data.orientation import unknown_geometry
from treg_med.data.records import Geometry, Measurement
from treg_med.data.sampling import MASK_KINDS
from treg_med.data.simulation import PHASES
from treg_med.data.source import ScanHeader
from treg_med.errors import FormatError, GeometryError, UnsafeFileError
from treg_med.words.scan_words import ScanWords

__all__ = ["LAYOUT", "LAYOUT_VERSION", "RawKspaceReader", "read_geometry", "read_operations"]

LAYOUT = "treg_med_kspace"
LAYOUT_VERSION = 1

_LAYOUTS = {4: "(slice, coil, ky, kx)", 3: "(coil, ky, kx)", 2: "(ky, kx)"}
# What may be copied from the operations of a file into a sidecar: numbers and known words, nothing free.
_OPERATION_KEYS = frozenset(
    "operation acceleration true_acceleration mask coils maps noise noise_std seed phase volume".split()
    + "slice_axis views arc_deg photons electronic_std beam mu_water sub_rays".split()
)
_OPERATION_WORDS = frozenset(
    ("simulate", "simulate CT", "slice", "retrospective undersampling", "birdcage", "parallel", "fan")
    + (*MASK_KINDS, *PHASES)
)
_INFERRED = "the file has no mask: samples that are exactly zero in all coils were taken as not measured"
_UNKNOWN = (
    "unknown geometry: the file carries no position or voxel size; 1 mm voxels are assumed, "
    "left and right are not known"
)


class RawKspaceReader(Hdf5Reader):
    """Reads the layout described at the top of this file.

    Parameters
    ----------
    path
        The file.
    noise_std
        Overrides the noise level of the file.
    acceleration, mask, seed
        Undersample a fully sampled scan: factor, pattern (`MASK_KINDS`) and seed.
    rot90, flip
        Override how the raw image is turned for display: quarter turns anticlockwise, then a left-right
        mirror.

    Raises
    ------
    FormatError, GeometryError
        If a dataset has the wrong type or shape.
    """

    format = "raw k-space HDF5"

    def __init__(
        self,
        path: Path,
        *,
        noise_std: float | None = None,
        acceleration: float | None = None,
        mask: str = "random",
        seed: int = 0,
        rot90: Literal[0, 1, 2, 3] | None = None,
        flip: bool | None = None,
    ) -> None:
        options = {
            "noise_std": noise_std,
            "acceleration": acceleration,
            "mask": mask,
            "seed": seed,
            "rot90": rot90,
            "flip": flip,
        }
        super().__init__(path, options)
        self._undersampling = Undersampling(acceleration, mask, seed)
        try:
            self._check_layout()
            self.geometry = self._read_geometry(rot90, flip)
            self.header = self._read_header(noise_std)
        except BaseException:
            self.close()
            raise

    def _check_layout(self) -> None:
        kspace = self._dataset("kspace")
        check_kspace(kspace, _LAYOUTS)
        shape = (1,) * (4 - kspace.ndim) + kspace.shape
        self._shape: tuple[int, int, int, int] = (shape[0], shape[1], shape[2], shape[3])
        slices, coils, height, width = self._shape
        stored = self._optional("mask")
        self._mask = None if stored is None else check_mask(self._read(stored), (height, width))
        self._check_companion("target", ((slices, height, width), (height, width)), "iufc")
        self._check_companion(
            "sensitivity_maps", ((slices, coils, height, width), (coils, height, width)), "c"
        )

    def _check_companion(self, name: str, shapes: tuple[tuple[int, ...], ...], kinds: str) -> None:
        dataset = self._optional(name)
        if dataset is None:
            return
        allowed = shapes if self._shape[0] == 1 or name == "sensitivity_maps" else shapes[:1]
        if dataset.shape not in allowed:
            expected = " or ".join(str(s) for s in allowed)
            raise GeometryError(
                f"expected {name} of shape {expected} beside k-space {self._shape}, got {dataset.shape}"
            )
        if dataset.dtype.kind not in kinds:
            raise FormatError(
                f"expected {name} to be {'complex' if kinds == 'c' else 'numbers'}, got {dataset.dtype}"
            )

    def _read_geometry(self, rot90: int | None, flip: bool | None) -> Geometry:
        slices, _, height, width = self._shape
        return read_geometry(self._h5().attrs, (height, width, slices), rot90=rot90, flip=flip)

    def _read_header(self, noise_std: float | None) -> ScanHeader:
        attributes = self._h5().attrs
        simulated = bool(number_attribute(attributes, "simulated"))
        stored_noise = number_attribute(attributes, "noise_std")
        warnings = [] if self.geometry.known else [_UNKNOWN]
        if simulated:
            warnings.insert(0, INVERSE_CRIME)
        if self._mask is None:
            warnings.append(_INFERRED)
        acquired = self._mask
        if acquired is not None and self._undersampling.acceleration is not None:
            acquired = self._undersampling.reduce(acquired, complete=bool(acquired.all()))
        return ScanHeader(
            format=self.format,
            n_slices=self._shape[0],
            image_shape=self._shape[2:],
            coils=self._shape[1],
            spacing_mm=self.geometry.spacing_mm,
            geometry_known=self.geometry.known,
            words=ScanWords.from_header(
                **{k: attributes.get(k) for k in ("modality", "anatomy", "contrast", "plane")}
            ),
            noise_std=stored_noise if noise_std is None else noise_std,
            acceleration=None if acquired is None else acquired.numel() / int(acquired.sum()),
            simulated=simulated,
            operations=tuple(read_operations(attributes) + self._undersampling.describe()),
            warnings=tuple(warnings),
            description=text_attribute(attributes, "description") or text_attribute(attributes, "source"),
        )

    def _slice_of(self, name: str, dimensions: int, index: int) -> Tensor | None:
        dataset = self._optional(name)
        if dataset is None:
            return None
        return self._read(dataset, index if dataset.ndim == dimensions else None)

    def _measure(self, index: int) -> Measurement:
        stored = self._slice_of("kspace", 4, index)
        if stored is None:
            raise FormatError("expected a dataset 'kspace'; the file changed while it was open")
        kspace = stored.to(torch.complex64).reshape(self._shape[1:])
        check_finite(kspace, index)
        mask = (kspace != 0).any(0) if self._mask is None else self._mask
        if not bool(mask.any()):
            raise FormatError(
                f"expected measured samples, got only zeros in slice {index}; leave this slice out"
            )
        target = self._slice_of("target", 3, index)
        facts = self._provenance()
        facts["mask_source"] = "inferred from exact zeros" if self._mask is None else "from the file"
        complete = bool(mask.all())
        kept = self._undersampling.reduce(mask, complete=complete)
        if target is None and complete:
            target = reference_image(kspace)
            facts["target"] = "the fully sampled measurement itself"
        return assemble_measurement(
            kspace,
            kept,
            index=index,
            geometry=self.geometry,
            provenance=facts,
            maps=self._slice_of("sensitivity_maps", 4, index),
            noise_std=self.header.noise_std,
            noise_from=(kspace, mask),
            target=None if target is None else single_precision(target).reshape(self._shape[2:]),
        )


def read_geometry(
    attributes: h5py.AttributeManager,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    rot90: int | None = None,
    flip: bool | None = None,
) -> Geometry:
    """Return the geometry in the attributes of a file, or a placeholder where it has none.

    Parameters
    ----------
    attributes
        Of the file.
    shape
        (rows, columns, slices).
    spacing_mm
        Of the placeholder.
    rot90, flip
        Override how the raw image is turned for display.

    Raises
    ------
    FormatError, GeometryError
        For attributes that are no geometry.
    """
    turn = int(number_attribute(attributes, "display_rot90") or 0) if rot90 is None else rot90
    mirror = bool(number_attribute(attributes, "display_flip")) if flip is None else flip
    if "affine" not in attributes:
        return unknown_geometry(shape, spacing_mm, display_rot90=turn, display_flip=mirror)
    codes = {name: int(number_attribute(attributes, name) or 0) for name in ("sform_code", "qform_code")}
    storage = np.asarray(attributes.get("storage", ((0, 1), (1, 1), (2, 1))))
    if storage.shape != (3, 2) or storage.dtype.kind not in "iu" or sorted(storage[:, 0].tolist()) != [0, 1, 2]:
        raise FormatError(
            f"expected the attribute 'storage' to be a (3, 2) orientation, got {storage.tolist()}"
        )
    affine = np.asarray(attributes["affine"])
    if affine.dtype.kind not in "iuf":
        raise FormatError(f"expected the attribute 'affine' to be numbers, got {affine.dtype}")
    pairs = [(int(axis), 1 if direction > 0 else -1) for axis, direction in storage.tolist()]
    return Geometry(
        affine,
        shape,
        xyzt_units=int(number_attribute(attributes, "xyzt_units") or 2),
        known=any(codes.values()),
        storage=(pairs[0], pairs[1], pairs[2]),
        display_rot90=turn,
        display_flip=mirror,
        **codes,
    )


def read_operations(attributes: h5py.AttributeManager) -> list[dict[str, Any]]:
    """Return the known entries of the list of operations; free text is dropped and reaches no sidecar."""
    text = text_attribute(attributes, "operations")
    if text is None:
        return []
    if len(text) > 100_000:
        raise UnsafeFileError(f"expected a short list of operations, got {len(text)} characters")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            "expected the attribute 'operations' to be a JSON list; write it with json.dumps"
        ) from error
    if not isinstance(entries, list):
        raise FormatError(
            f"expected the attribute 'operations' to be a JSON list, got {type(entries).__name__}"
        )
    return [
        {k: v for k, v in e.items() if k in _OPERATION_KEYS and _harmless(v)}
        for e in entries
        if isinstance(e, dict)
    ]


def _harmless(value: object) -> bool:
    if isinstance(value, float) and not np.isfinite(value):
        return False
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and value in _OPERATION_WORDS)
    )

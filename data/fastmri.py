"""The fastMRI layout: ``kspace`` (slice, [coil,] H, W), ``ismrmrd_header`` (XML) and reconstructions.

Readout oversampling. H is the readout and is oversampled; only its central ``recon_x`` pixels are wanted.
Cropping k-space would lower the resolution instead, so the crop is made between two transforms along H alone:

    k_c = F_{recon_x} C F_H^{-1} k,   F orthonormal and centred, C the central crop.

Phase-encoding columns are untouched, so a mask over columns stays valid, and ``k_c = M F x_c`` holds exactly
for the cropped image x_c: the operator is `CartesianMRI` on (recon_x, W). White noise stays white at the same
level, because C only drops pixels.

Padding. Columns left of ``W//2 - center`` and from ``W//2 - center + maximum + 1`` on were never acquired;
they are zeros in the file and are not counted as sampled.

Source: Zbontar et al., arXiv 1811.08839; file layout as documented with the fastMRI data set.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from treg_med.data.assemble import assemble_measurement, check_finite, check_mask
from treg_med.data.hdf5_reader import (
    Hdf5Reader,
    Undersampling,
    check_kspace,
    reference_image,
    single_precision,
    text_attribute,
)
from treg_med.data.orientation import unknown_geometry
from treg_med.data.records import Measurement
from treg_med.data.safe_hdf5 import hdf5_errors
from treg_med.data.source import ScanHeader
from treg_med.errors import FormatError, GeometryError, NumericsError, UnsafeFileError
from treg_med.words.scan_words import ScanWords, words_from_label

__all__ = ["EncodingHeader", "FastMriReader", "crop_readout", "parse_encoding_header"]

_LAYOUTS = {4: "(slice, coil, H, W)", 3: "(slice, H, W)"}
_LONGEST_HEADER = 1 << 20
_NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"
# Relative difference up to which our reference agrees with the reconstruction stored in the file.
_REFERENCE_TOLERANCE = 1e-3
_POSITION = (
    "unknown geometry: voxel sizes come from the header, but the file carries no position; "
    "left and right are not known"
)


@dataclass(frozen=True)
class EncodingHeader:
    """The part of the ISMRMRD header that is read.

    Parameters
    ----------
    encoded, recon
        Matrix (x, y, z) of the acquisition and of the reconstruction; x is the readout.
    encoded_fov_mm, recon_fov_mm
        Fields of view (x, y, z).
    center, maximum
        Phase-encoding step at the centre of k-space and the last one; None if not stated.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    encoded_fov_mm: tuple[float, float, float]
    recon_fov_mm: tuple[float, float, float]
    center: int | None
    maximum: int | None

    def acquired_columns(self, width: int) -> tuple[int, int]:
        """Return the first acquired column and the one after the last, of ``width``."""
        if self.center is None or self.maximum is None:
            return 0, width
        left = width // 2 - self.center
        return max(0, left), min(width, left + self.maximum + 1)


def parse_encoding_header(xml: bytes | str) -> EncodingHeader:
    """Read the encoding section of an ISMRMRD header.

    Raises
    ------
    UnsafeFileError
        If the XML declares a document type or entities, or is longer than 1 MiB.
    FormatError
        If it is not XML or a needed element is missing.
    """
    text = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else xml
    if len(text) > _LONGEST_HEADER:
        raise UnsafeFileError(f"expected an ISMRMRD header below 1 MiB, got {len(text)} characters")
    # Entities are the only way for XML to grow or to read files, and they need a declaration.
    if "\0" in text or "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
        raise UnsafeFileError(
            "the ISMRMRD header declares a document type or entities; a scanner never writes that"
        )
    try:
        # Without a declaration there is nothing to expand; the parser reads no other file.
        root = ElementTree.fromstring(text)  # noqa: S314
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise FormatError(f"expected an ISMRMRD header in XML: {error}; export the file again") from error
    limits = "encoding/encodingLimits/kspace_encoding_step_1"
    return EncodingHeader(
        encoded=_matrix(root, "encoding/encodedSpace/matrixSize"),
        recon=_matrix(root, "encoding/reconSpace/matrixSize"),
        encoded_fov_mm=_lengths(root, "encoding/encodedSpace/fieldOfView_mm"),
        recon_fov_mm=_lengths(root, "encoding/reconSpace/fieldOfView_mm"),
        center=_optional_int(root, f"{limits}/center"),
        maximum=_optional_int(root, f"{limits}/maximum"),
    )


def _value(root: ElementTree.Element, path: str) -> str | None:
    for namespace in (_NAMESPACE, ""):
        found = root.findtext("/".join(f"{namespace}{part}" for part in path.split("/")))
        if found is not None:
            return found.strip()
    return None


def _optional_int(root: ElementTree.Element, path: str) -> int | None:
    text = _value(root, path)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError as error:
        raise FormatError(
            f"expected an integer in the ISMRMRD header at {path}, got {text[:40]!r}"
        ) from error
    if not 0 <= number < 1 << 20:
        raise FormatError(f"expected a size in the ISMRMRD header at {path}, got {number}")
    return number


def _matrix(root: ElementTree.Element, path: str) -> tuple[int, int, int]:
    sizes = [_optional_int(root, f"{path}/{axis}") for axis in "xyz"]
    if any(s is None or s < 1 for s in sizes):
        raise FormatError(
            f"expected {path} with x, y and z in the ISMRMRD header, got {sizes}; export the file again"
        )
    return tuple(int(s or 0) for s in sizes)  # type: ignore[return-value]


def _lengths(root: ElementTree.Element, path: str) -> tuple[float, float, float]:
    values = []
    for axis in "xyz":
        text = _value(root, f"{path}/{axis}")
        try:
            number = 0.0 if text is None else float(text)
        except ValueError as error:
            raise FormatError(
                f"expected a length in mm in the ISMRMRD header at {path}/{axis}, got {text!r:.40}"
            ) from error
        values.append(number if np.isfinite(number) and number > 0 else 0.0)
    return values[0], values[1], values[2]


def crop_readout(kspace: Tensor, length: int) -> Tensor:
    """Crop the image to its central ``length`` rows and return its k-space.

    ``F_length C F_H^{-1} k`` along the rows (see the top of this file).

    Parameters
    ----------
    kspace
        (*batch, H, W) complex, rows are the readout.
    length
        Rows to keep, at most H.

    Returns
    -------
    (*batch, length, W).
    """
    height = kspace.shape[-2]
    if length >= height:
        return kspace
    image = torch.fft.fftshift(
        torch.fft.ifft(torch.fft.ifftshift(kspace, dim=-2), dim=-2, norm="ortho"), dim=-2
    )
    # The origin of both grids is at n // 2.
    first = height // 2 - length // 2
    cropped = image[..., first : first + length, :]
    return torch.fft.fftshift(
        torch.fft.fft(torch.fft.ifftshift(cropped, dim=-2), dim=-2, norm="ortho"), dim=-2
    )


class FastMriReader(Hdf5Reader):
    """Reads single- and multi-coil fastMRI files, training, validation and test.

    Parameters
    ----------
    path
        The file.
    acceleration, mask, seed
        Undersample a fully sampled scan: factor, pattern (`MASK_KINDS`) and seed.
    noise_std
        Noise level of the k-space; None to estimate it per slice.

    Raises
    ------
    FormatError, GeometryError, UnsafeFileError
        If the header or a dataset is damaged, inconsistent or unsafe.
    """

    format = "fastMRI HDF5"

    def __init__(
        self,
        path: Path,
        *,
        acceleration: float | None = None,
        mask: str = "random",
        seed: int = 0,
        noise_std: float | None = None,
    ) -> None:
        super().__init__(
            path, {"acceleration": acceleration, "mask": mask, "seed": seed, "noise_std": noise_std}
        )
        self._undersampling = Undersampling(acceleration, mask, seed)
        try:
            self._read_layout()
            self.header = self._read_header(noise_std)
        except BaseException:
            self.close()
            raise

    def _read_layout(self) -> None:
        kspace = self._dataset("kspace")
        check_kspace(kspace, _LAYOUTS)
        with hdf5_errors(self.path.name):
            xml = self._dataset("ismrmrd_header")[()]
        if not isinstance(xml, bytes | str):
            raise FormatError(f"expected ismrmrd_header to be one XML text, got {type(xml).__name__}")
        self.encoding = parse_encoding_header(xml)
        slices, height, width = kspace.shape[0], kspace.shape[-2], kspace.shape[-1]
        self._coils = kspace.shape[1] if kspace.ndim == 4 else 1
        self._rows = min(self.encoding.recon[0], height)
        self._width = width
        first, last = self.encoding.acquired_columns(width)
        if first >= last:
            raise GeometryError(
                f"the ISMRMRD header puts all {width} columns into the padding (center "
                f"{self.encoding.center}, "
                f"maximum {self.encoding.maximum}); it does not belong to this k-space"
            )
        columns = torch.zeros(width, dtype=torch.bool)
        columns[first:last] = True
        self._complete = columns
        stored = self._stored_mask()
        self._has_mask = stored is not None
        self._acquired = columns if stored is None else columns & stored
        if not bool(self._acquired.any()):
            raise FormatError("the mask samples padding columns only; it does not belong to this k-space")
        spacing = (
            _spacing(self.encoding.recon_fov_mm[0], self.encoding.recon[0]),
            _spacing(self.encoding.encoded_fov_mm[1], width),
            _spacing(self.encoding.recon_fov_mm[2], self.encoding.recon[2]),
        )
        # The raw images of this collection are upside down: two quarter turns and a mirror are one up-down
        # flip.
        self.geometry = unknown_geometry(
            (self._rows, width, slices), spacing, display_rot90=2, display_flip=True
        )

    def _stored_mask(self) -> Tensor | None:
        """Return the columns of the test mask, from a dataset or an attribute, as (W,) bool."""
        values: Any = None
        if "mask" in self._h5():
            values = self._read(self._dataset("mask"))
        elif "mask" in self._h5().attrs:
            values = torch.as_tensor(np.asarray(self._h5().attrs["mask"]))
        if values is None:
            return None
        return check_mask(values.reshape(-1) if values.ndim > 2 else values, (1, self._width))[0]

    def _read_header(self, noise_std: float | None) -> ScanHeader:
        attributes = self._h5().attrs
        words = _words(attributes)
        shape = (self._rows, self._width)
        kept = self._undersampling.reduce(
            self._acquired.expand(shape), complete=bool((self._acquired == self._complete).all())
        )
        self._mask = kept.clone()
        return ScanHeader(
            format=self.format,
            n_slices=self._dataset("kspace").shape[0],
            image_shape=shape,
            coils=self._coils,
            spacing_mm=self.geometry.spacing_mm,
            geometry_known=False,
            words=words,
            noise_std=noise_std,
            acceleration=self._mask.numel() / int(self._mask.sum()),
            operations=tuple(self._undersampling.describe()),
            warnings=(_POSITION,),
        )

    def _measure(self, index: int) -> Measurement:
        kspace = self._read(self._dataset("kspace"), index).to(torch.complex64)
        kspace = kspace.reshape(self._coils, kspace.shape[-2], self._width)
        check_finite(kspace, index)
        acquired = self._acquired.expand(self._rows, self._width)
        kspace = torch.where(acquired, crop_readout(kspace, self._rows), torch.zeros((), dtype=kspace.dtype))
        if not bool(kspace.any()):
            raise NumericsError(
                f"expected measured samples, got only zeros in slice {index}; leave this slice out"
            )
        facts = self._provenance()
        facts["mask_source"] = "from the file" if self._has_mask else "all acquired columns"
        target = self._target(kspace, index, facts)
        return assemble_measurement(
            kspace,
            self._mask,
            index=index,
            geometry=self.geometry,
            provenance=facts,
            noise_std=self.header.noise_std,
            noise_from=(kspace, acquired),
            target=target,
        )

    def _target(self, kspace: Tensor, index: int, facts: dict[str, Any]) -> Tensor | None:
        """Return the stored reconstruction where it fits the image, else the reference of complete data."""
        name = next((n for n in ("reconstruction_rss", "reconstruction_esc") if n in self._h5()), None)
        stored = None if name is None else single_precision(self._read(self._dataset(name), index))
        if stored is not None and tuple(stored.shape) == (self._rows, self._width):
            facts["target"] = name
            return stored
        if not bool((self._acquired == self._complete).all()):
            if stored is not None:
                facts["warnings"] = (
                    *facts["warnings"],
                    f"{name} {tuple(stored.shape)} does not cover the image ({self._rows}, {self._width}) "
                    "and was not used as target",
                )
            return None
        facts["target"] = "the fully sampled measurement itself"
        reference = reference_image(kspace)
        if stored is not None and not _agrees(reference.abs(), stored.abs()):
            facts["warnings"] = (
                *facts["warnings"],
                f"{name} is not the centre of the image of the fully sampled k-space; the image of the "
                "k-space is the target",
            )
        return reference


def _agrees(reference: Tensor, stored: Tensor) -> bool:
    """Whether the stored image is the central crop of the reference."""
    (height, width), (rows, columns) = reference.shape, stored.shape
    if rows > height or columns > width:
        return False
    top, left = (height - rows) // 2, (width - columns) // 2
    crop = reference[top : top + rows, left : left + columns]
    return bool(
        torch.linalg.vector_norm(crop - stored) <= _REFERENCE_TOLERANCE * torch.linalg.vector_norm(stored)
    )


def _spacing(field_of_view: float, size: int) -> float:
    return field_of_view / size if field_of_view > 0 else 1.0


def _words(attributes: h5py.AttributeManager | Mapping[str, Any]) -> ScanWords:
    words = words_from_label(text_attribute(attributes, "acquisition") or "")
    if words.anatomy is not None or words.plane is None:
        return words
    # The collection scans knees coronally and brains axially.
    anatomy = {"coronal": "knee", "axial": "brain"}.get(words.plane)
    return ScanWords(words.modality, anatomy, words.contrast, words.plane)

"""NIfTI-1 and NIfTI-2 magnitude volumes, read safely, and the reader that simulates k-space from them.

A NIfTI image is not a measurement. `NiftiReader` computes k-space from it with the same model that later
reconstructs it, an inverse crime: allowed for development, and said in the header, the provenance and every
sidecar.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from treg_med.data.assemble import INVERSE_CRIME, assemble_measurement
from treg_med.data.orientation import choose_slice_axis, oriented_geometry, plane_of, to_images
from treg_med.data.records import Geometry, Measurement
from treg_med.data.safe_hdf5 import check_bomb, check_fits_memory
from treg_med.data.simulation import KspaceSimulation
from treg_med.data.source import ScanHeader, ScanReader
from treg_med.errors import (
    ConfigError,
    FormatError,
    GeometryError,
    NumericsError,
    ResourceError,
    TregMedError,
    UnsafeFileError,
)
from treg_med.words.scan_words import ScanWords, words_from_label

__all__ = ["NiftiReader", "NiftiVolume", "looks_like_hounsfield", "looks_like_nifti"]

_GZIP = b"\x1f\x8b"
_HEAD = 600
_MOST_EXPANSION = 300
_SMALL = 64 * 2**20
_CHUNK = 4 * 2**20
_LARGEST_EXTENSION = 16 * 2**20
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# A magnitude has no negative values, interpolation makes small ones, CT in Hounsfield units reaches -1000.
_MOST_NEGATIVE = 0.2
# Fat is -100 HU, lung -800, air -1000: what reaches this far down is CT.
_BELOW_ANY_MAGNITUDE = -200.0
# HU of -4096 to -1 read as unsigned 16 bit, and the densest metal.
_WRAPPED_HU, _LARGEST_HU = 61440, 32767


def looks_like_nifti(head: bytes) -> bool:
    """Whether the first bytes, gunzipped where necessary, are a NIfTI header."""
    if head[:2] == _GZIP:
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, _HEAD)
        except zlib.error:
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


@contextmanager
def _nifti_errors(name: str) -> Iterator[None]:
    """Turn the exceptions that nibabel raises on damaged headers into one `FormatError`."""
    try:
        yield
    except TregMedError:
        raise
    except MemoryError as error:
        raise ResourceError(
            f"not enough memory to read {name!r}; crop the volume or choose fewer slices"
        ) from error
    except (
        ImageFileError, HeaderDataError, ImageDataError, WrapStructError,
        OSError, OverflowError, ValueError, TypeError, KeyError, EOFError, zlib.error, struct.error,
    ) as error:  # fmt: skip
        text = " ".join(str(error).split())[:200]
        raise FormatError(
            f"expected a complete NIfTI file, but {name!r} is truncated or damaged ({type(error).__name__}: "
            f"{text}); "
            "copy or export it again"
        ) from error


@dataclass(frozen=True)
class NiftiVolume:
    """One three-dimensional volume with its place in the patient.

    Parameters
    ----------
    values
        (i, j, k) float32, slope and intercept applied.
    affine
        (4, 4), voxel to RAS+ mm.
    sform_code, qform_code, xyzt_units
        Codes of the header; the affine is in mm whatever the units were.
    """

    values: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    sform_code: int
    qform_code: int
    xyzt_units: int

    @classmethod
    def read(cls, path: Path, volume: int | None = None, *, finite: bool = True) -> NiftiVolume:
        """Read a volume.

        Parameters
        ----------
        path
            ``.nii`` or gzipped, whatever it is called.
        volume
            Which one of a 4-D file.
        finite
            Refuse NaN and Inf; False keeps them, for those who count them.

        Raises
        ------
        FormatError, GeometryError, NumericsError, UnsafeFileError, ResourceError
            If the header is damaged, the shape or affine is unusable, values are not finite where they have to
            be, or the file is a bomb.
        ConfigError
            If a 4-D file is read without ``volume``, or the number is out of range.
        """
        with _nifti_errors(path.name), _plain_stream(path) as stream:
            header = _read_header(stream, path)
            shape = _checked_shape(header, path)
            index = _checked_volume(shape, volume)
            _check_size(header, path)
            values = _read_values(stream, header, shape, index, path)
            sform, qform = int(header["sform_code"]), int(header["qform_code"])
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            units = int(header["xyzt_units"])
        unit = _MM.get(units & 7)
        if unit is None:
            raise FormatError(
                f"expected lengths in m, mm or um (xyzt_units 1, 2 or 3), got code {units & 7}; repair the "
                "header"
            )
        if finite and not np.isfinite(values).all():
            first = tuple(int(v) for v in np.argwhere(~np.isfinite(values))[0])
            raise NumericsError(
                f"expected finite values, got {int((~np.isfinite(values)).sum())} NaN or Inf voxels, the "
                f"first at {first}; "
                "replace them, for example by 0 (CT: by -1000, air)"
            )
        affine = affine.copy()
        affine[:3] *= unit
        # Geometry checks that the affine is finite and invertible.
        Geometry(affine)
        return cls(values, affine, max(sform, 0), max(qform, 0), (units & ~7) | 2)


@contextmanager
def _plain_stream(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
        raw.seek(0)
        if not zipped:
            yield raw
        else:
            with gzip.GzipFile(fileobj=raw) as unzipped:
                yield unzipped  # type: ignore[misc]


def _read_header(stream: BinaryIO, path: Path) -> nib.Nifti1Header:
    head = stream.read(540)
    if head[344:348] in (b"ni1\0",) or head[4:8] == b"ni2\0":
        raise FormatError(
            f"{path.name!r} is the header of a two-file NIfTI pair; convert it to one .nii file"
        )
    if head[344:348] == b"n+1\0":
        return nib.Nifti1Header.from_fileobj(BytesIO(head[:348]), check=True)
    if head[4:8] == b"n+2\0":
        return nib.Nifti2Header.from_fileobj(BytesIO(head), check=True)
    raise FormatError(f"expected the NIfTI magic 'n+1' or 'n+2' in {path.name!r}, found neither")


def _checked_shape(header: nib.Nifti1Header, path: Path) -> tuple[int, ...]:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape = shape + (1,) * (3 - len(shape)) if len(shape) == 2 else shape
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise GeometryError(
            f"expected a 3-D or 4-D volume in {path.name!r}, got shape {shape}; save one volume"
        )
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise FormatError(f"expected real numbers, got {dtype}; save the magnitude as float32")
    return shape


def _checked_volume(shape: tuple[int, ...], volume: int | None) -> int:
    count = shape[3] if len(shape) == 4 else 1
    if volume is None and count > 1:
        raise ConfigError(f"the file holds {count} volumes {shape}; choose one with volume=0..{count - 1}")
    index = 0 if volume is None else volume
    if not isinstance(index, int) or not 0 <= index < count:
        raise ConfigError(f"expected volume=0..{count - 1}, got {volume!r}")
    return index


def _check_size(header: nib.Nifti1Header, path: Path) -> None:
    """Refuse what cannot be in the file before any memory is asked for."""
    declared = math.prod(int(n) for n in header.get_data_shape()) * header.get_data_dtype().itemsize
    stored = path.stat().st_size
    check_bomb(path.name, declared, stored)
    if declared > _SMALL and declared > _MOST_EXPANSION * stored:
        raise UnsafeFileError(
            f"{path.name!r} of {stored} bytes declares {declared / 2**20:.0f} MiB, more than "
            f"{_MOST_EXPANSION} times as much: "
            "a scan never compresses like that; get the file from its source again"
        )
    # Four bytes per value in memory, whatever the file stores.
    check_fits_memory(path.name, 4 * declared // header.get_data_dtype().itemsize)


def _read_values(
    stream: BinaryIO, header: nib.Nifti1Header, shape: tuple[int, ...], index: int, path: Path
) -> npt.NDArray[np.float32]:
    dtype = header.get_data_dtype()
    count = math.prod(shape[:3])
    # 0 stands for "right behind the header".
    offset = int(header.get_data_offset()) or int(header.single_vox_offset)
    if not header.single_vox_offset <= offset <= _LARGEST_EXTENSION:
        raise FormatError(f"expected the voxels of {path.name!r} behind the header, got offset {offset}")
    wanted = count * dtype.itemsize
    stream.seek(offset + index * wanted)
    # Pieces, so that a lying header cannot make one huge allocation before the data run out.
    pieces, got = [], 0
    while got < wanted:
        piece = stream.read(min(_CHUNK, wanted - got))
        if not piece:
            raise FormatError(
                f"{path.name!r} is truncated: expected {wanted} bytes of voxels, got {got}; copy it again"
            )
        pieces.append(piece)
        got += len(piece)
    raw = np.frombuffer(b"".join(pieces), dtype=dtype).reshape(shape[:3], order="F")
    slope, intercept = header.get_slope_inter()
    if slope is None:
        # Values beyond single precision become Inf, which the caller refuses with a message.
        with np.errstate(over="ignore"):
            return np.asarray(raw, dtype=np.float32)
    # Double precision, as the values of int32 and int64 files do not fit single precision before scaling.
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.asarray(raw, dtype=np.float64) * float(slope) + float(intercept or 0.0)
        return np.asarray(scaled, dtype=np.float32)


def looks_like_hounsfield(path: Path, volume: int | None = None) -> bool:
    """Whether a volume is CT in Hounsfield units: it reaches below -200, or did before it was read as unsigned.

    Reading stops at the first such value: air around a patient comes early in a file, so that little is read twice.

    Parameters
    ----------
    path
        The file.
    volume
        Which volume of a 4-D file.

    Raises
    ------
    FormatError, GeometryError, UnsafeFileError, ResourceError, ConfigError
        As in `NiftiVolume.read`.
    """
    with _nifti_errors(path.name), _plain_stream(path) as stream:
        header = _read_header(stream, path)
        shape = _checked_shape(header, path)
        index = _checked_volume(shape, volume)
        _check_size(header, path)
        slope, intercept = header.get_slope_inter()
        factor, shift = (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0.0))
        dtype = header.get_data_dtype()
        wanted = math.prod(shape[:3]) * dtype.itemsize
        stream.seek((int(header.get_data_offset()) or int(header.single_vox_offset)) + index * wanted)
        if dtype == np.uint16 and (factor, shift) == (1.0, 0.0):
            return _is_wrapped(_pieces(stream, wanted, dtype))
        if factor == 0 or (dtype.kind == "u" and factor > 0 and shift >= _BELOW_ANY_MAGNITUDE):
            return False
        limit = (_BELOW_ANY_MAGNITUDE - shift) / factor
        pieces = _pieces(stream, wanted, dtype)
        return any(bool((values < limit).any() if factor > 0 else (values > limit).any()) for values in pieces)


def _pieces(stream: BinaryIO, wanted: int, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Give the stored values piece by piece; a truncated file ends early and is refused by the reader."""
    rest = b""
    while wanted > 0:
        piece = stream.read(min(_CHUNK, wanted))
        if not piece:
            return
        wanted -= len(piece)
        piece = rest + piece
        whole = len(piece) // dtype.itemsize * dtype.itemsize
        rest = piece[whole:]
        yield np.frombuffer(piece[:whole], dtype=dtype)


def _is_wrapped(pieces: Iterator[npt.NDArray[Any]]) -> bool:
    """Whether unsigned 16-bit values are negative Hounsfield units: the top of the range and nothing on the way."""
    found = False
    for values in pieces:
        if bool(((values > _LARGEST_HU) & (values < _WRAPPED_HU)).any()):
            return False
        found = found or bool((values >= _WRAPPED_HU).any())
    return found


class NiftiReader(ScanReader):
    """Simulates k-space slice by slice from the magnitude in a NIfTI file.

    Parameters
    ----------
    path
        The file.
    slice_axis
        Stored axis (0, 1, 2) to slice across; default: the one of coarsest spacing, else the axial one.
    volume
        Which volume of a 4-D file.
    acceleration, mask, coils, noise, seed, phase
        As in `KspaceSimulation`.

    Raises
    ------
    FormatError, GeometryError, NumericsError, UnsafeFileError, ResourceError, ConfigError
        As in `NiftiVolume.read`, and for settings that cannot be used.

    Attributes
    ----------
    sampling
        The pattern of every slice, with its true acceleration.
    peak
        Largest value of the volume; ``noise`` is relative to it.
    """

    format = "NIfTI magnitude"

    def __init__(
        self,
        path: Path,
        *,
        slice_axis: int | None = None,
        volume: int | None = None,
        acceleration: float = 4.0,
        mask: str = "random",
        coils: int = 1,
        noise: float = 0.01,
        seed: int = 0,
        phase: str = "smooth",
    ) -> None:
        simulation = KspaceSimulation(acceleration, mask, coils, noise, seed, phase)
        options = {"slice_axis": slice_axis, "volume": volume, **simulation.options()}
        super().__init__(path, options)
        if slice_axis not in (None, 0, 1, 2):
            raise ConfigError(f"expected slice_axis 0, 1 or 2, got {slice_axis!r}")
        stored = NiftiVolume.read(self.path, volume)
        _check_magnitude(stored.values)
        axis = choose_slice_axis(stored.affine) if slice_axis is None else slice_axis
        codes = {
            "sform_code": stored.sform_code,
            "qform_code": stored.qform_code,
            "xyzt_units": stored.xyzt_units,
        }
        self.geometry = oriented_geometry(stored.affine, stored.values.shape, axis, **codes)
        self._images = to_images(stored.values, self.geometry)
        self._simulation = simulation
        self.peak = float(stored.values.max())
        self.sampling = simulation.make_mask((self.geometry.shape[0], self.geometry.shape[1]))
        self.header = self._make_header(plane_of(stored.affine, axis), axis, volume)

    def close(self) -> None:
        """Forget the volume; later reads raise `ResourceError`."""
        super().close()
        self._images = self._images[:0]

    def _make_header(self, plane: str, axis: int, volume: int | None) -> ScanHeader:
        # The name is only looked through for whitelisted words; the free text of the header is never read.
        named = words_from_label(self.path.name.split(".")[0])
        known = self.geometry.known
        words = ScanWords("MRI", named.anatomy, named.contrast, plane if known else None)
        operation = self._simulation.describe(self.sampling) | {"slice_axis": axis, "volume": volume}
        unknown = (
            ()
            if known
            else ("unknown geometry: the header gives voxel sizes but no position (both codes are 0)",)
        )
        return ScanHeader(
            format=self.format,
            n_slices=self.geometry.shape[2],
            image_shape=(self.geometry.shape[0], self.geometry.shape[1]),
            coils=self._simulation.coils,
            spacing_mm=self.geometry.spacing_mm,
            geometry_known=known,
            words=words,
            noise_std=self._simulation.noise * self.peak,
            acceleration=self.sampling.acceleration,
            simulated=True,
            operations=(operation,),
            warnings=(INVERSE_CRIME, *unknown),
        )

    def magnitude(self, index: int) -> torch.Tensor:
        """Return slice ``index`` as an upright (H, W) float32 image."""
        return torch.from_numpy(np.ascontiguousarray(self._images[:, :, index]))

    def _measure(self, index: int) -> Measurement:
        slice_ = self._simulation.slice(self.magnitude(index), index, self.sampling, self.peak)
        facts = self._provenance() | {"target": "the image that k-space was simulated from"}
        return assemble_measurement(
            slice_.kspace,
            self.sampling.mask,
            index=index,
            geometry=self.geometry,
            provenance=facts,
            maps=slice_.maps,
            noise_std=self._simulation.noise * self.peak,
            target=slice_.target,
        )


def _check_magnitude(values: npt.NDArray[np.float32]) -> None:
    low, high = float(values.min()), float(values.max())
    if high <= 0:
        raise NumericsError(
            f"expected a magnitude image, got values from {low:g} to {high:g}: nothing to simulate from"
        )
    if low < -_MOST_NEGATIVE * high:
        raise FormatError(
            f"expected an MR magnitude (>= 0), got values from {low:g} to {high:g}; "
            "this looks like CT or phase, from which no k-space can be simulated"
        )

"""One door for every file: what it is gets decided by its content, never by its name."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py

from treg_med.data.ct_volume import HounsfieldHdf5Reader, HounsfieldReader
from treg_med.data.data_exchange import DataExchangeReader
from treg_med.data.fastmri import FastMriReader
from treg_med.data.generic_hdf5 import RawKspaceReader
from treg_med.data.htc2022 import Htc2022Reader
from treg_med.data.lodopab import IMAGE_SHAPE, SINOGRAM_SHAPE, LodopabReader, LodopabTruthReader
from treg_med.data.nifti import NiftiReader, looks_like_hounsfield, looks_like_nifti
from treg_med.data.safe_hdf5 import HDF5_SIGNATURE, check_readable_file, hdf5_errors, open_hdf5
from treg_med.data.sinogram_hdf5 import SinogramReader
from treg_med.data.source import ScanReader, check_options
from treg_med.data.trajectory_hdf5 import TrajectoryReader
from treg_med.errors import FormatError
from treg_med.plugins import Plugin, installed_plugins, plugin_problems

__all__ = ["FileContent", "open_scan", "register_reader"]

_HEAD = 64 * 1024
_LODOPAB_PER_FILE = 128
_KNOWN = (
    "HDF5 with a dataset 'kspace' (raw or fastMRI) or CT projections ('sinogram', 'counts', 'exchange', LoDoPaB-CT "
    "'data'), or NIfTI-1/2 (.nii, .nii.gz)"
)
_OTHERS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("a DICOM file; convert the series to NIfTI (dcm2niix)", lambda head: head[128:132] == b"DICM"),
    ("a zip archive; unpack it first", lambda head: head[:4] == b"PK\x03\x04"),
    (
        "a numpy array; write it with treg_med.data.simulate_scan or as HDF5 'kspace'",
        lambda head: head[:6] == b"\x93NUMPY",
    ),
    ("a MATLAB 5 file; save it with -v7.3 and a dataset 'kspace' or 'sinogram'", lambda head: head[:6] == b"MATLAB"),
    (
        "a picture, which holds no scan",
        lambda head: head[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"GIF8", b"II*\0", b"MM\0*"),
    ),
    ("a gzip file that does not hold NIfTI; unpack it first", lambda head: head[:2] == b"\x1f\x8b"),
)


@dataclass(frozen=True)
class FileContent:
    """What decides the format: the first bytes and, for HDF5, the names at the top of the file.

    ``shapes`` are those of the datasets at the top, ``attributes`` the names of those of the file.
    """

    head: bytes
    keys: frozenset[str] | None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, path: Path) -> FileContent:
        """Look into a file without reading its data."""
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if not _is_hdf5(path, head):
            return cls(head, None)
        file = open_hdf5(path)
        with hdf5_errors(path.name), file:
            items = {name: file[name] for name in file}
            keys = frozenset(n for n, item in items.items() if isinstance(item, h5py.Dataset | h5py.Group))
            shapes = {n: item.shape or () for n, item in items.items() if isinstance(item, h5py.Dataset)}
            return cls(head, keys, shapes, frozenset(file.attrs))


def _is_hdf5(path: Path, head: bytes) -> bool:
    """Whether the signature stands at 0 or, after a user block, at 512, 1024, 2048, ..."""
    if head.startswith(HDF5_SIGNATURE):
        return True
    size, offset = path.stat().st_size, 512
    with path.open("rb") as stream:
        while offset < size:
            stream.seek(offset)
            if stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return True
            offset *= 2
    return False


def _has(content: FileContent, *names: str) -> bool:
    return content.keys is not None and content.keys >= set(names)


def _is_lodopab(content: FileContent, shape: tuple[int, int]) -> bool:
    found = content.shapes.get("data", ())
    return len(found) == 3 and found[1:] == shape and 1 <= found[0] <= _LODOPAB_PER_FILE


_READERS: list[tuple[Callable[[FileContent], bool], type[ScanReader]]] = [
    (lambda c: _has(c, "kspace", "ismrmrd_header"), FastMriReader),
    (lambda c: _has(c, "kspace", "trajectory"), TrajectoryReader),
    (lambda c: _has(c, "kspace"), RawKspaceReader),
    (lambda c: _has(c, "sinogram", "angles_deg") and "distanceSourceOrigin" in c.attributes, Htc2022Reader),
    (lambda c: _has(c, "exchange"), DataExchangeReader),
    (lambda c: _is_lodopab(c, SINOGRAM_SHAPE), LodopabReader),
    (lambda c: _is_lodopab(c, IMAGE_SHAPE), LodopabTruthReader),
    (lambda c: _has(c, "hounsfield"), HounsfieldHdf5Reader),
    (lambda c: _has(c, "sinogram") or _has(c, "counts"), SinogramReader),
    (lambda c: c.keys is None and looks_like_nifti(c.head), NiftiReader),
]


def register_reader(recognises: Callable[[FileContent], bool], reader: type[ScanReader]) -> None:
    """Add a reader in this process; it is asked before those that exist.

    A package adds one in every process by the entry point ``treg_med.readers``; its class has a static method
    ``recognises(content: FileContent) -> bool``.

    Parameters
    ----------
    recognises
        Whether a file is one of its own.
    reader
        Subclass of `ScanReader`, called with the path and the options of `open_scan`.
    """
    _READERS.insert(0, (recognises, reader))


def open_scan(path: str | os.PathLike[str], **options: Any) -> ScanReader:
    """Open a scan: k-space or CT projections in HDF5, or NIfTI (a scan is then simulated, and said to be).

    HDF5: raw k-space, k-space along a trajectory, fastMRI, CT sinograms or counts with a declared geometry, LoDoPaB-CT,
    Data Exchange, HTC2022, and volumes ``hounsfield``. NIfTI: MR magnitudes, and CT in Hounsfield units, known by
    values below -200.

    Parameters
    ----------
    path
        The file; its name and extension do not matter.
    **options
        Of the reader: see `RawKspaceReader`, `TrajectoryReader`, `FastMriReader` and `NiftiReader` for MRI;
        `SinogramReader`, `LodopabReader`, `DataExchangeReader`, `Htc2022Reader` and `HounsfieldReader` for CT.

    Returns
    -------
    A `SliceSource`: ``len``, ``header``, ``scan[i] -> Measurement``, context manager, picklable.

    Raises
    ------
    ResourceError
        If the file is missing, a folder or unreadable.
    FormatError
        If it is empty, damaged or of an unknown format.
    UnsafeFileError
        If it could read other files or exhaust the memory.
    ConfigError
        For an option that the reader does not have.
    """
    file = check_readable_file(path)
    content = FileContent.of(file)
    plugged, problems = _plugged_readers()
    for recognises, reader in (*plugged, *_READERS):
        if recognises(content):
            reader = _of_its_kind(reader, file, options)
            parameters = inspect.signature(reader).parameters.values()
            check_options(
                reader.format, options, tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
            )
            return reader(file, **options)
    lost = "".join(f"; {problem}" for problem in problems)
    raise FormatError(f"expected {_KNOWN}; {file.name!r} is {_describe(content)}{lost}")


@cache
def _plugged_readers() -> tuple[tuple[tuple[Callable[[FileContent], bool], type[ScanReader]], ...], tuple[str, ...]]:
    """Return the readers of plug-ins, which are asked first, and why others are not among them; warns of these once."""
    problems = plugin_problems("readers", ScanReader)
    readers = []
    for plugin in installed_plugins("readers"):
        if plugin.name in problems:
            continue
        reader = plugin.load(ScanReader)
        recognises = getattr(reader, "recognises", None)
        if callable(recognises):
            readers.append((partial(_recognised, plugin, recognises), reader))
        else:
            problems[plugin.name] = (
                f"the reader {plugin.name!r} of {plugin.package} has no static method recognises(content) -> bool"
            )
    for problem in problems.values():
        warnings.warn(problem, stacklevel=3)
    return tuple(readers), tuple(problems.values())


def _recognised(plugin: Plugin, recognises: Callable[[FileContent], bool], content: FileContent) -> bool:
    """Ask a plug-in whether a file is its own; one that fails is passed over, with a warning."""
    try:
        return bool(recognises(content))
    except Exception as error:  # noqa: BLE001 - a foreign package may raise anything
        told = f"{type(error).__name__}: {error}"
        warnings.warn(f"the reader {plugin.name!r} of {plugin.package} failed on this file ({told})", stacklevel=3)
        return False


def _of_its_kind(reader: type[ScanReader], file: Path, options: Mapping[str, Any]) -> type[ScanReader]:
    """Return the CT reader for a NIfTI file in Hounsfield units: its values tell, or an offset makes them so."""
    volume = options.get("volume")
    if reader is NiftiReader and "offset" in options:
        return HounsfieldReader
    if reader is NiftiReader and (volume is None or isinstance(volume, int)) and looks_like_hounsfield(file, volume):
        return HounsfieldReader
    return reader


def _describe(content: FileContent) -> str:
    if content.keys is not None:
        if {"dataset"} <= content.keys:
            return (
                "HDF5 with a group 'dataset', probably ISMRMRD raw data; "
                "sort it into 'kspace' (slice, coil, ky, kx) first"
            )
        names = ", ".join(sorted(content.keys)[:8]) or "nothing"
        return (
            f"HDF5 without a dataset 'kspace', 'sinogram' or 'counts' (it has {names}); rename the dataset that holds "
            "the measurement"
        )
    for what, matches in _OTHERS:
        if matches(content.head):
            return what
    return f"something else (first bytes {content.head[:8].hex(' ')}); check that it is the scan"

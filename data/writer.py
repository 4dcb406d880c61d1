"""Reconstructions to NIfTI with a JSON sidecar that says where every number came from.

Files appear together at the end or not at all, the sidecar last: an output is complete when its sidecar
exists and names the SHA-256 of the image beside it. Headers are built new; nothing is copied from the input
but its geometry. The same work gives the same bytes: what differs from run to run, such as seconds, is not in them.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.wrapstruct import WrapStructError

from treg_med.data.atomic import StagedFiles, check_writable_folder, safe_name, writing
from treg_med.data.orientation import slices_geometry, stored_affine, to_volume
from treg_med.data.plain import plain
from treg_med.data.records import RESEARCH_ONLY, Geometry, Reconstruction
from treg_med.data.safe_hdf5 import sha256_of
from treg_med.data.slice_record import SliceRecord
from treg_med.errors import FormatError, GeometryError, ResourceError

__all__ = ["SIDECAR_VERSION", "VolumeWriter", "is_complete", "is_reconstruction", "software_versions"]

SIDECAR_VERSION = 2
# Noise does not compress: higher levels take a quarter longer for 2 % of the size.
_GZIP_LEVEL = 1
_DESCRIPTION = b"treg_med reconstruction; research use only"
_PACKAGES = ("treg-med", "torch", "numpy", "nibabel", "h5py", "diffusers", "transformers")


def software_versions() -> dict[str, str]:
    """Return the versions of what computed a result; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def is_complete(sidecar: Path) -> bool:
    """Whether a sidecar exists and the image it names is there with the checksum it states."""
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        output = facts["outputs"]["magnitude"]
        image = sidecar.parent / safe_name(output["file"])
        return bool(sha256_of(image) == output["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_reconstruction(image: Path) -> bool:
    """Whether a file is a volume that `VolumeWriter` wrote, by its header."""
    try:
        with gzip.open(image) as file:
            header = nib.Nifti1Header(file.read(nib.Nifti1Header.sizeof_hdr), check=False)
    except (OSError, EOFError, zlib.error, WrapStructError):
        return False
    return bool(header["descrip"].item() == _DESCRIPTION)


@dataclass
class VolumeWriter:
    """Collects reconstructed slices and writes one volume with its sidecar.

    ``<name>.nii.gz`` (magnitude, float32, raw units; CT in Hounsfield units where mu_water is known, else in 1/mm),
    ``<name>_phase.nii.gz`` (rad, if asked for) and ``<name>.json``::

        with VolumeWriter(folder, "scan_rec-treg", text=text, seed=0) as writer:
            for i in range(len(scan)):
                writer.add(tm.reconstruct(scan[i], text=text))
        writer.image_path, writer.sidecar_path

    Leaving the block normally writes the files; leaving it by an exception (Ctrl-C included) leaves nothing
    behind.

    Parameters
    ----------
    folder
        Existing, writable folder.
    name
        Plain file name without extension.
    overwrite
        Replace an existing output. Even then the old one stays until the new one is complete.
    phase
        Also write the phase of complex images.
    text, seed
        Recorded for the whole run; each slice's own are recorded too.
    prior_sha256, prior_name
        Identity of the prior; None where none was used.
    extra
        More facts for the sidecar, plain values.
    scratch
        Existing folder for what is unfinished, as in `StagedFiles`.

    Raises
    ------
    ResourceError
        If the folder is missing or not writable, an output exists, or the disk is full.
    ConfigError
        If the name is not safe.
    GeometryError, NumericsError
        If slices do not fit together, come twice, or hold NaN or Inf.
    """

    folder: str | os.PathLike[str]
    name: str
    overwrite: bool = False
    phase: bool = False
    text: str | None = None
    seed: int | None = None
    prior_sha256: str | None = None
    prior_name: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    scratch: Path | None = None

    def __post_init__(self) -> None:
        safe_name(self.name)
        self._folder = check_writable_folder(self.folder, scratch=self.scratch)
        self._images: dict[int, npt.NDArray[np.complex64] | npt.NDArray[np.float32]] = {}
        self._slices: dict[int, Mapping[str, Any]] = {}
        self._geometry: Geometry | None = None
        self._input: Mapping[str, Any] = {}
        self._warnings: dict[str, None] = {}
        self._unit: Mapping[str, Any] | None = None
        plain(dict(self.extra))
        with StagedFiles(overwrite=self.overwrite) as staged:
            # Asking for the paths now refuses an existing output before hours of work, not after.
            for path in self._outputs():
                staged.path(path)

    @property
    def image_path(self) -> Path:
        """Where the magnitude goes."""
        return self._folder / f"{self.name}.nii.gz"

    @property
    def phase_path(self) -> Path:
        """Where the phase goes."""
        return self._folder / f"{self.name}_phase.nii.gz"

    @property
    def sidecar_path(self) -> Path:
        """Where the sidecar goes."""
        return self._folder / f"{self.name}.json"

    def _outputs(self) -> list[Path]:
        return [self.image_path, *([self.phase_path] if self.phase else []), self.sidecar_path]

    def add(self, reconstruction: Reconstruction, index: int | None = None) -> None:
        """Take one slice; ``index`` defaults to the slice number in its geometry.

        Raises
        ------
        GeometryError, NumericsError
            If it does not fit the slices so far, or holds NaN or Inf.
        """
        measurement = reconstruction.measurement
        geometry = measurement.geometry if measurement is not None else None
        own = len(self._images) if geometry is None else geometry.slice_index
        self.add_record(SliceRecord.of(reconstruction, own if index is None else index))

    def add_record(self, record: SliceRecord) -> None:
        """Take one slice as it was kept.

        Raises
        ------
        GeometryError
            If it does not fit the slices so far.
        """
        self._check(record)
        if record.geometry is not None:
            self._check_geometry(record.geometry)
        self._unit = record.unit
        self._images[record.index] = record.image if self.phase else record.written
        self._slices[record.index] = record.facts
        self._input = self._input or record.source
        self._warnings.update(dict.fromkeys(record.warnings))

    def _check(self, record: SliceRecord) -> None:
        if record.index in self._images:
            raise GeometryError(f"slice {record.index} was added twice; each slice is written once")
        first = next(iter(self._images.values()), None)
        if first is not None and first.shape != record.image.shape:
            raise GeometryError(
                f"expected slices of shape {first.shape}, got {record.image.shape} for slice {record.index}"
            )
        if self._unit not in (None, record.unit):
            raise GeometryError(
                f"expected slices in one unit, {self._unit}, got {record.unit} for slice {record.index}; "
                "write one volume per scan"
            )

    def _check_geometry(self, geometry: Geometry) -> None:
        if self._geometry is None:
            self._geometry = geometry
        elif geometry.shape != self._geometry.shape or not np.allclose(
            geometry.affine, self._geometry.affine
        ):
            raise GeometryError(
                "expected all slices to come from one scan, got another geometry; write one volume per scan"
            )

    def close(self) -> None:
        """Write everything; nothing is visible before all of it is on disk.

        Raises
        ------
        ResourceError
            If there is nothing to write or the disk is full.
        GeometryError
            If the slices are not evenly spaced.
        """
        if not self._images:
            raise ResourceError("expected at least one reconstructed slice, got none; nothing was written")
        indices = sorted(self._images)
        height, width = self._images[indices[0]].shape
        geometry = self._geometry or Geometry(shape=(height, width, indices[-1] + 1))
        part = slices_geometry(geometry, indices)
        magnitude = np.empty((height, width, len(indices)), dtype=np.float32)
        phase = np.empty_like(magnitude) if self.phase else None
        for k, i in enumerate(indices):
            # One slice less is held for each that is copied, so that a volume is in memory once.
            image = self._images.pop(i)
            magnitude[..., k] = np.abs(image) if np.iscomplexobj(image) else image
            if phase is not None:
                phase[..., k] = np.angle(image)
        with StagedFiles(overwrite=self.overwrite, scratch=self.scratch) as staged:
            content = (self._unit or {}).get("content", "magnitude, raw units")
            outputs = {"magnitude": _write_image(staged, self.image_path, magnitude, part, content)}
            if phase is not None:
                outputs["phase"] = _write_image(staged, self.phase_path, phase, part, "phase in rad")
            facts = self._sidecar(indices, part, outputs)
            text = json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
            with writing(f"writing {self.sidecar_path.name!r}"):
                staged.path(self.sidecar_path).write_text(text, encoding="utf-8")
            staged.commit()

    def _sidecar(self, indices: list[int], geometry: Geometry, outputs: Mapping[str, Any]) -> dict[str, Any]:
        slices = [self._slices[i] for i in indices]
        residuals = [s["residual_noise_units"] for s in slices if s["residual_noise_units"] is not None]
        warnings = list(self._warnings)
        if not geometry.known and not any("unknown geometry" in w for w in warnings):
            warnings.append("unknown geometry: position and voxel size are placeholders")
        facts = {
            "notice": RESEARCH_ONLY,
            "sidecar_version": SIDECAR_VERSION,
            "outputs": outputs,
            **{name: value for name, value in (self._unit or {}).items() if name != "content"},
            "input": self._input,
            "solver": sorted({s["solver"] for s in slices}),
            "text": self.text if self.text is not None else _common(slices, "text"),
            "seed": self.seed if self.seed is not None else _common(slices, "seed"),
            "prior": {"name": self.prior_name, "sha256": self.prior_sha256},
            "residual_noise_units": {"mean": float(np.mean(residuals)), "max": max(residuals)}
            if residuals
            else None,
            **_domain(slices),
            "geometry": _geometry_facts(geometry),
            "warnings": warnings,
            "versions": software_versions(),
            "slices": slices,
            **dict(self.extra),
        }
        values = plain(facts)
        if not isinstance(values, dict):
            raise FormatError("the sidecar must be a JSON object")
        return values

    def abort(self) -> None:
        """Forget everything; nothing was written."""
        self._images.clear()
        self._slices.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write on success, forget on any exception."""
        if kind is None:
            self.close()
        else:
            self.abort()


def _write_image(
    staged: StagedFiles, path: Path, images: npt.NDArray[np.float32], geometry: Geometry, content: str
) -> dict[str, Any]:
    temporary = staged.path(path)
    volume, affine = to_volume(images, geometry)
    with (
        writing(f"writing {path.name!r}"),
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0) as file,
    ):
        file.write(_nifti_header(volume.shape, affine, geometry))
        for plane in np.moveaxis(volume, -1, 0):
            file.write(plane.astype("<f4").tobytes(order="F"))
    return {"file": path.name, "sha256": sha256_of(temporary), "content": content}


def _nifti_header(shape: tuple[int, ...], affine: npt.NDArray[np.float64], geometry: Geometry) -> bytes:
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header.set_sform(affine, code=geometry.sform_code)
    # A qform cannot hold shears; it then stays as close as a rotation can be.
    header.set_qform(affine, code=geometry.qform_code, strip_shears=True)
    header["xyzt_units"] = geometry.xyzt_units
    header["descrip"] = _DESCRIPTION
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    # Four bytes after the header say that no extension follows.
    return bytes(header.binaryblock) + b"\0\0\0\0"


def _common(slices: list[Mapping[str, Any]], key: str) -> Any:
    """Return the value that all slices share, None if they differ."""
    values = {json.dumps(s[key]) for s in slices}
    return json.loads(values.pop()) if len(values) == 1 else None


def _domain(slices: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and largest distance from the prior's domain; nothing where no slice has one."""
    distances = [s["domain_distance"] for s in slices if s.get("domain_distance") is not None]
    return {"domain_distance": {"mean": float(np.mean(distances)), "max": max(distances)}} if distances else {}


def _geometry_facts(geometry: Geometry) -> dict[str, Any]:
    return {
        "known": geometry.known,
        "note": "from the input" if geometry.known else "unknown geometry",
        "affine": stored_affine(geometry).tolist(),
        "spacing_row_column_slice_mm": list(geometry.spacing_mm),
        "slice_axis": geometry.storage[2][0],
        "sform_code": geometry.sform_code,
        "qform_code": geometry.qform_code,
    }

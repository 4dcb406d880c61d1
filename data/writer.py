"""Reconstructions to NIfTI with a JSON sidecar that says where every number came from.

Files appear together at the end or not at all, the sidecar last: an output is complete when its sidecar
exists and names the SHA-256 of the image beside it. Headers are built new; nothing is copied from the input
but its geometry.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treg_med.data.atomic import StagedFiles, check_writable_folder, safe_name
from treg_med.data.orientation import slices_geometry, stored_affine, to_volume
from treg_med.data.records import RESEARCH_ONLY, Geometry, Measurement, Reconstruction
from treg_med.data.safe_hdf5 import sha256_of
from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError, ResourceError
from treg_med.operators.ct_operator import CTOperator

__all__ = ["SIDECAR_VERSION", "VolumeWriter", "is_complete", "software_versions"]

SIDECAR_VERSION = 1
# Longer arrays, such as the region of a guidance, are recorded by their checksum.
_LONGEST_LIST = 256
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

    def __post_init__(self) -> None:
        safe_name(self.name)
        self._folder = check_writable_folder(self.folder)
        self._images: dict[int, npt.NDArray[np.complex64] | npt.NDArray[np.float32]] = {}
        self._slices: dict[int, dict[str, Any]] = {}
        self._geometry: Geometry | None = None
        self._input: dict[str, Any] = {}
        self._warnings: dict[str, None] = {}
        self._unit: dict[str, Any] | None = None
        _plain(dict(self.extra))
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
        position = (
            index
            if index is not None
            else (geometry.slice_index if geometry is not None else len(self._images))
        )
        unit = _unit_of(measurement)
        image = (reconstruction.hounsfield if unit.get("unit") == "HU" else reconstruction.image).detach().cpu()
        self._check_image(image, position)
        if self._unit not in (None, unit):
            raise GeometryError(
                f"expected slices in one unit, {self._unit}, got {unit} for slice {position}; write one volume per scan"
            )
        if geometry is not None:
            self._check_geometry(geometry, image)
        self._unit = unit
        self._images[position] = image.resolve_conj().numpy()
        self._slices[position] = _slice_facts(reconstruction, position)
        if measurement is not None:
            self._input = self._input or _input_facts(measurement)
            self._warnings.update(dict.fromkeys(measurement.warnings))
        self._warnings.update(dict.fromkeys(reconstruction.warnings))

    def _check_image(self, image: Tensor, position: int) -> None:
        if image.ndim != 2:
            raise GeometryError(f"expected an image (H, W), got {tuple(image.shape)}; add samples one by one")
        if position in self._images:
            raise GeometryError(f"slice {position} was added twice; each slice is written once")
        first = next(iter(self._images.values()), None)
        if first is not None and first.shape != tuple(image.shape):
            raise GeometryError(
                f"expected slices of shape {first.shape}, got {tuple(image.shape)} for slice {position}"
            )
        parts = torch.view_as_real(image.resolve_conj()) if image.is_complex() else image
        if not bool(torch.isfinite(parts).all()):
            raise NumericsError(
                f"slice {position} holds NaN or Inf and was not written; check the solver's settings"
            )

    def _check_geometry(self, geometry: Geometry, image: Tensor) -> None:
        if tuple(image.shape) != geometry.shape[:2]:
            raise GeometryError(
                f"expected images of {geometry.shape[:2]} (the scan's geometry), got {tuple(image.shape)}"
            )
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
        stack = np.stack([self._images[i] for i in indices], axis=-1)
        geometry = self._geometry or Geometry(shape=(*stack.shape[:2], indices[-1] + 1))
        part = slices_geometry(geometry, indices)
        with StagedFiles(overwrite=self.overwrite) as staged:
            magnitude = np.abs(stack) if np.iscomplexobj(stack) else stack
            content = (self._unit or {}).get("content", "magnitude, raw units")
            outputs = {"magnitude": self._write_image(staged, self.image_path, magnitude, part, content)}
            if self.phase:
                outputs["phase"] = self._write_image(
                    staged, self.phase_path, np.angle(stack), part, "phase in rad"
                )
            sidecar = (
                json.dumps(
                    self._sidecar(indices, part, outputs), indent=2, allow_nan=False, ensure_ascii=False
                )
                + "\n"
            )
            _write(staged.path(self.sidecar_path), sidecar.encode())
            staged.commit()

    def _write_image(
        self, staged: StagedFiles, path: Path, values: npt.NDArray[Any], geometry: Geometry, content: str
    ) -> dict[str, Any]:
        data = gzip.compress(_nifti_bytes(values.astype(np.float32), geometry), compresslevel=6, mtime=0)
        _write(staged.path(path), data)
        return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "content": content}

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
            "seconds": sum(s["seconds"] or 0.0 for s in slices),
            "peak_memory_mb": max((s["peak_memory_mb"] or 0.0 for s in slices), default=0.0),
            "geometry": _geometry_facts(geometry),
            "warnings": warnings,
            "versions": software_versions(),
            "device": sorted({s["device"] for s in slices}),
            "slices": slices,
            **dict(self.extra),
        }
        plain = _plain(facts)
        if not isinstance(plain, dict):
            raise FormatError("the sidecar must be a JSON object")
        return plain

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


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ResourceError(
            f"writing {path.name!r} failed: {error}; free some space or choose another folder"
        ) from error


def _nifti_bytes(images: npt.NDArray[np.float32], geometry: Geometry) -> bytes:
    volume, affine = to_volume(images, geometry)
    image = nib.Nifti1Image(np.ascontiguousarray(volume), affine)
    header = image.header
    image.set_sform(affine, code=geometry.sform_code)
    # A qform cannot hold shears; it then stays as close as a rotation can be.
    image.set_qform(affine, code=geometry.qform_code, strip_shears=True)
    header["xyzt_units"] = geometry.xyzt_units
    header["descrip"] = b"treg_med reconstruction; research use only"
    return bytes(image.to_bytes())


def _common(slices: list[dict[str, Any]], key: str) -> Any:
    """Return the value that all slices share, None if they differ."""
    values = {json.dumps(s[key]) for s in slices}
    return json.loads(values.pop()) if len(values) == 1 else None


def _slice_facts(rec: Reconstruction, position: int) -> dict[str, Any]:
    measurement = rec.measurement
    return {
        "slice": position,
        "solver": rec.solver,
        "text": rec.text,
        "seed": rec.seed,
        "residual_noise_units": _number(rec.residual),
        "noise_std": None if measurement is None else measurement.noise_std,
        "scale": None if measurement is None else measurement.scale,
        "network_evaluations": rec.nfe,
        "seconds": _number(rec.seconds),
        "peak_memory_mb": _number(rec.peak_memory_mb),
        "device": str(rec.image.device),
        "settings": _plain(dict(rec.settings)),
        "warnings": list(rec.warnings),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _unit_of(measurement: Measurement | None) -> dict[str, Any]:
    """Return unit, mu_water and a description of what is written; nothing for MRI, whose units are raw."""
    if measurement is None or not isinstance(measurement.operator, CTOperator):
        return {}
    if measurement.mu_water is None:
        return {"unit": "1/mm", "content": "linear attenuation in 1/mm"}
    content = "Hounsfield units, 1000 (mu - mu_water) / mu_water"
    return {"unit": "HU", "mu_water_per_mm": measurement.mu_water, "content": content}


def _input_facts(measurement: Measurement) -> dict[str, Any]:
    facts = {k: v for k, v in measurement.provenance.items() if k != "warnings"}
    if isinstance(measurement.operator, CTOperator):
        return facts
    mask = getattr(measurement.operator, "mask", None)
    if isinstance(mask, Tensor):
        facts["mask"] = _mask_facts(mask.cpu())
        facts["acceleration"] = mask.numel() / max(1, int(mask.sum()))
    facts["coils"] = int(measurement.y.shape[-3]) if measurement.y.ndim >= 3 else 1
    return facts


def _mask_facts(mask: Tensor) -> dict[str, Any]:
    pattern = (mask != 0).contiguous()
    facts: dict[str, Any] = {
        "shape": list(pattern.shape),
        "sampled": int(pattern.sum()),
        "sha256": hashlib.sha256(pattern.to(torch.uint8).numpy().tobytes()).hexdigest(),
    }
    if bool((pattern == pattern[:1]).all()):
        facts["columns"] = pattern[0].nonzero().flatten().tolist()
    return facts


def _geometry_facts(geometry: Geometry) -> dict[str, Any]:
    return {
        "known": geometry.known,
        "note": "from the input" if geometry.known else "unknown geometry",
        "affine": stored_affine(geometry).tolist(),
        "spacing_row_column_slice_mm": list(geometry.spacing_mm),
        "sform_code": geometry.sform_code,
        "qform_code": geometry.qform_code,
    }


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and Inf become null, short arrays lists, long ones their fingerprint.

    Raises
    ------
    ConfigError
        If a value has no plain form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return _plain(value.tolist()) if math.prod(value.shape) <= _LONGEST_LIST else _fingerprint(value)
    if isinstance(value, os.PathLike):
        # A path may name a person; its last part would too.
        return "(path)"
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    raise ConfigError(f"expected plain values for the sidecar, got {type(value).__name__}")


def _fingerprint(array: Tensor | npt.NDArray[Any]) -> dict[str, Any]:
    if isinstance(array, Tensor):
        kind = str(array.dtype).removeprefix("torch.")
        # As bytes first: numpy has no bfloat16.
        content = array.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    else:
        kind, content = str(array.dtype), np.ascontiguousarray(array).tobytes()
    return {"shape": list(array.shape), "type": kind, "sha256": hashlib.sha256(content).hexdigest()}

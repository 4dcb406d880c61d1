"""One reconstructed slice as it is kept until its volume is complete: the image and plain facts.

A record holds nothing that differs between two runs of the same work but ``cost``, so that a volume put together from
stored records has the same bytes as one written in one go.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from treg_med.data.atomic import StagedFiles, writing
from treg_med.data.plain import plain
from treg_med.data.records import Geometry, Measurement, Reconstruction
from treg_med.errors import FormatError, GeometryError, NumericsError

__all__ = ["SliceRecord", "shown_values"]

_VERSION = "1"


@dataclass(frozen=True, eq=False)
class SliceRecord:
    """A slice of a volume.

    Parameters
    ----------
    index
        Slice number in the scan.
    image
        (H, W), complex64 or float32, raw units of the measurement (CT: 1/mm).
    facts
        What the sidecar says of this slice.
    geometry
        Of the scan; None where it has none.
    source
        What the sidecar says of the input.
    unit
        Unit, mu_water and description of what is written; empty for MRI.
    warnings
        Sentences that belong beside the volume.
    target
        (H, W) float32, the reference as a volume shows it, where there is one.
    cost
        Seconds and peak memory: these differ from run to run and go to the run's index, not to the sidecar.
    """

    index: int
    image: npt.NDArray[np.complex64] | npt.NDArray[np.float32]
    facts: Mapping[str, Any] = field(default_factory=dict)
    geometry: Geometry | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    unit: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    target: npt.NDArray[np.float32] | None = None
    cost: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, reconstruction: Reconstruction, index: int) -> SliceRecord:
        """Keep what a volume needs of a reconstruction.

        Raises
        ------
        GeometryError
            If it is not one image that fits the geometry of its scan.
        NumericsError
            If it holds NaN or Inf.
        """
        measurement = reconstruction.measurement
        geometry = measurement.geometry if measurement is not None else None
        image = reconstruction.image.detach().cpu().resolve_conj()
        _check(image, geometry, index)
        single = image.to(torch.complex64 if image.is_complex() else torch.float32)
        warned = (measurement.warnings if measurement is not None else ()) + reconstruction.warnings
        return cls(
            index=index,
            image=single.numpy(),
            facts=_facts(reconstruction, index),
            geometry=geometry,
            source={} if measurement is None else plain(_source(measurement)),
            unit=_unit(measurement),
            warnings=tuple(dict.fromkeys(warned)),
            target=None if measurement is None else _target(measurement),
            cost={"seconds": _number(reconstruction.seconds), "peak_memory_mb": _number(reconstruction.peak_memory_mb)},
        )

    @property
    def written(self) -> npt.NDArray[np.float32]:
        """What the volume shows, float32: magnitude, attenuation, or Hounsfield units where mu_water is known."""
        return shown_values(self.image, self.unit.get("mu_water_per_mm"))

    @property
    def residual(self) -> float:
        """Misfit in noise units; NaN where it is unknown."""
        value = self.facts.get("residual_noise_units")
        return math.nan if value is None else float(value)

    def save(self, path: Path) -> None:
        """Write the record: complete and with a checksum, or not at all.

        Raises
        ------
        ResourceError
            If the disk is full.
        """
        facts = {f: getattr(self, f) for f in ("index", "facts", "source", "unit", "warnings", "cost")}
        geometry = None if self.geometry is None else asdict(self.geometry)
        text = json.dumps(plain({**facts, "geometry": geometry}), allow_nan=False)
        parts = {"image": np.ascontiguousarray(self.image)}
        if self.target is not None:
            parts["target"] = np.ascontiguousarray(self.target)
        known = {"version": _VERSION, "record": text, "sha256": _checksum(text, self.image, self.target)}
        with writing(f"keeping slice {self.index}"), StagedFiles(overwrite=True) as staged:
            staged.path(path).write_bytes(save(parts, known))
            # A record is worth one slice: it need not survive a power cut, which would cost a wait per slice.
            staged.commit(durable=False)

    @classmethod
    def load(cls, path: Path) -> SliceRecord:
        """Read a record.

        Raises
        ------
        FormatError
            If it is not there, not whole, or not what was written.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                known, image = file.metadata() or {}, file.get_tensor("image")
                target = file.get_tensor("target") if "target" in file.keys() else None  # noqa: SIM118
            if known.get("version") != _VERSION or known.get("sha256") != _checksum(known["record"], image, target):
                raise FormatError(f"expected a whole slice record, got {path.name!r} with another checksum; remove it")
            facts = json.loads(known["record"])
            geometry = facts.pop("geometry")
            facts["warnings"] = tuple(facts["warnings"])
            placed = None if geometry is None else _geometry(geometry)
            return cls(image=image, geometry=placed, target=target, **facts)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"expected a slice record, got {path.name!r} ({error}); remove it") from error


def shown_values(image: npt.NDArray[Any], mu_water: float | None = None) -> npt.NDArray[np.float32]:
    """Return what a volume shows of an image: the magnitude; Hounsfield units where mu_water (1/mm) is given."""
    values = np.asarray(np.abs(image) if np.iscomplexobj(image) else image, dtype=np.float32)
    return values if mu_water is None else (1000 * (values - np.float32(mu_water)) / np.float32(mu_water))


def _number(value: float) -> float | None:
    """Return a value that JSON can hold."""
    return float(value) if math.isfinite(value) else None


def _checksum(text: str, *arrays: npt.NDArray[Any] | None) -> str:
    held = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays if array is not None)
    return hashlib.sha256(held + text.encode()).hexdigest()


def _target(measurement: Measurement) -> npt.NDArray[np.float32] | None:
    """Return the reference as a volume shows it; None where there is none, or one for a batch."""
    if measurement.target is None or measurement.target.ndim != 2:
        return None
    return shown_values(measurement.target.detach().cpu().resolve_conj().numpy(), measurement.mu_water)


def _geometry(facts: dict[str, Any]) -> Geometry:
    rows, columns, slices = facts["shape"]
    a, b, c = (tuple(pair) for pair in facts["storage"])
    return Geometry(
        **{
            **facts,
            "affine": np.array(facts["affine"], dtype=np.float64),
            "shape": (rows, columns, slices),
            "storage": (a, b, c),
        }
    )


def _check(image: Tensor, geometry: Geometry | None, index: int) -> None:
    if image.ndim != 2:
        raise GeometryError(f"expected an image (H, W), got {tuple(image.shape)}; add samples one by one")
    if geometry is not None and tuple(image.shape) != geometry.shape[:2]:
        raise GeometryError(
            f"expected images of {geometry.shape[:2]} (the scan's geometry), got {tuple(image.shape)}"
        )
    parts = torch.view_as_real(image) if image.is_complex() else image
    if not bool(torch.isfinite(parts).all()):
        raise NumericsError(f"slice {index} holds NaN or Inf and was not written; check the solver's settings")


def _facts(rec: Reconstruction, index: int) -> dict[str, Any]:
    measurement = rec.measurement
    # Which of several devices it was is no property of the result.
    settings = {k: str(v).split(":")[0] if k == "device" else plain(v) for k, v in rec.settings.items()}
    return {
        "slice": index,
        "solver": rec.solver,
        "text": rec.text,
        "seed": rec.seed,
        "residual_noise_units": _number(rec.residual),
        **({} if rec.domain_distance is None else {"domain_distance": _number(rec.domain_distance)}),
        "noise_std": None if measurement is None else measurement.noise_std,
        "scale": None if measurement is None else measurement.scale,
        "network_evaluations": rec.nfe,
        "settings": settings,
        "warnings": list(rec.warnings),
    }


def _unit(measurement: Measurement | None) -> dict[str, Any]:
    """Return unit, mu_water and a description of what is written; nothing for images in raw units, as of MRI."""
    unit = "" if measurement is None else measurement.operator.image_unit
    if measurement is None or not unit:
        return {}
    if measurement.mu_water is None:
        return {"unit": unit, "content": f"linear attenuation in {unit}"}
    content = "Hounsfield units, 1000 (mu - mu_water) / mu_water"
    return {"unit": "HU", "mu_water_per_mm": measurement.mu_water, "content": content}


def _source(measurement: Measurement) -> dict[str, Any]:
    facts = {k: v for k, v in measurement.provenance.items() if k != "warnings"}
    return {**measurement.operator.facts(), **facts}

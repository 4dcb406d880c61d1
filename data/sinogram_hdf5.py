"""CT projections in HDF5 with a declared geometry: the project's own layout. Nothing is guessed.

Datasets:

- ``sinogram``: (slice, views, bins) or (views, bins), line integrals -log(I / I0), flat-fielded, no unit; or
  ``counts`` of the same shape with ``i0``, the counts without an object: one number, (bins,) or (views, bins);
- ``angles``: (views,) with the attribute ``units``, "rad" or "deg";
- ``weights`` (optional, with ``sinogram``): of its shape, relative statistical weights, 0 where nothing was measured;
- ``target`` (optional): (slice, y, x) or (y, x), reference image in the units of the image.

Attributes of the file that have to be there: ``geometry`` ("parallel" or "fan"), ``units`` of the image ("1/mm", "1/cm"
or "1/m": all lengths are in the same mm, cm or m), ``image_shape`` (rows, columns), ``pixel_size``, ``bin_size``; for a
fan also ``source_origin``, ``origin_detector`` and ``detector`` ("flat" or "curved").

Optional attributes: ``centre``, the bin of the rotation axis (default the middle, (bins - 1) / 2); ``electronic_std``
in counts; ``noise_std`` of the line integrals; ``mu_water`` in the units of the image; ``medical`` (0 for an object
that is no body); ``simulated``, ``operations``, ``anatomy``, ``contrast``, ``plane``, ``description``, ``affine``,
``storage``, ``sform_code``, ``qform_code``, ``xyzt_units``, ``display_rot90``, ``display_flip`` as in the raw k-space
layout.

Axes: row 0 of the image at the top, x to the right, y up. At angle b the detector axis is e = (cos b, sin b) and the
central ray runs along d = (-sin b, cos b); bin k lies at (k - centre) bin_size along e. The source of a fan is at
-source_origin d. ``layout = "treg_med_sinogram"`` and ``layout_version = 1`` mark files written by `simulate_ct_scan`.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import Tensor

from treg_med.data.ct_assemble import CT_INVERSE_CRIME, NOT_MEDICAL, assemble_ct, check_field_of_view, check_finite
from treg_med.data.ct_views import ScannedViews, ViewSelection
from treg_med.data.generic_hdf5 import read_geometry, read_operations
from treg_med.data.hdf5_reader import Hdf5Reader, number_attribute, text_attribute
from treg_med.data.records import Measurement
from treg_med.data.source import ScanHeader
from treg_med.errors import FormatError, GeometryError, NumericsError
from treg_med.operators.counts import log_transform
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.fan_beam import FanBeamCT
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.words.scan_words import ScanWords

__all__ = ["LAYOUT", "LAYOUT_VERSION", "SinogramReader"]

LAYOUT = "treg_med_sinogram"
LAYOUT_VERSION = 1

_NEEDED = ("geometry", "units", "image_shape", "pixel_size", "bin_size")
_NEEDED_FAN = ("source_origin", "origin_detector", "detector")
#: Millimetres in the unit of length that a unit of attenuation implies.
_UNITS = {"1/mm": 1.0, "1/cm": 10.0, "1/m": 1000.0}
_UNKNOWN = (
    "unknown geometry: the file carries no position in the patient; only sizes are known, left and right are not"
)


class SinogramReader(Hdf5Reader):
    """Reads the layout described at the top of this file.

    Parameters
    ----------
    path
        The file.
    views, arc, start
        Leave out views as in `ViewSelection`: number of views, arc and its start in degrees.
    centre
        Overrides the bin of the rotation axis.
    mu_water
        Overrides the attenuation of water, in 1/mm.
    noise_std
        Overrides the noise level of the line integrals, one for all rays.

    Raises
    ------
    FormatError
        Lists everything that is missing.
    GeometryError, ConfigError
        For datasets and lengths that do not fit together, and options that cannot be used.
    """

    format = "CT sinogram HDF5"

    def __init__(
        self,
        path: Path,
        *,
        views: int | None = None,
        arc: float | None = None,
        start: float = 0.0,
        centre: float | None = None,
        mu_water: float | None = None,
        noise_std: float | None = None,
    ) -> None:
        options = {
            "views": views,
            "arc": arc,
            "start": start,
            "centre": centre,
            "mu_water": mu_water,
            "noise_std": noise_std,
        }
        super().__init__(path, options)
        self._selection = ViewSelection(views, arc, start)
        try:
            self._check_complete()
            self._read_beam(centre, mu_water, noise_std)
            self._read_angles()
            self._check_companions()
            self.geometry = read_geometry(
                self._h5().attrs,
                (*self._image_shape, self._slices),
                (self._lengths["pixel_size"], self._lengths["pixel_size"], 1.0),
            )
            self.header = self._make_header()
        except BaseException:
            self.close()
            raise

    def _check_complete(self) -> None:
        """List everything that is missing at once, so that a file is mended in one go."""
        file = self._h5()
        missing = [f"attribute {name!r}" for name in _NEEDED if name not in file.attrs]
        self._beam = (text_attribute(file.attrs, "geometry") or "").strip().lower()
        if self._beam == "fan":
            missing += [f"attribute {name!r}" for name in _NEEDED_FAN if name not in file.attrs]
        if "angles" not in file:
            missing.append("dataset 'angles'")
        elif "units" not in file["angles"].attrs:
            missing.append("attribute 'units' (rad or deg) of the dataset 'angles'")
        self._kind: Literal["counts", "sinogram"] = "counts" if "counts" in file else "sinogram"
        if self._kind not in file:
            missing.append("dataset 'sinogram' or 'counts'")
        if self._kind == "counts" and "i0" not in file and "i0" not in file.attrs:
            missing.append("dataset or attribute 'i0' beside 'counts'")
        if missing:
            raise FormatError(
                f"expected a CT sinogram with a declared geometry; {self.path.name!r} lacks {', '.join(missing)}. "
                "Nothing is guessed: write them with h5py (file.attrs['bin_size'] = 1.2), lengths in the unit of "
                "'units'"
            )
        if self._beam not in ("parallel", "fan"):
            raise FormatError(f"expected the attribute 'geometry' to be 'parallel' or 'fan', got {self._beam[:40]!r}")

    def _read_beam(self, centre: float | None, mu_water: float | None, noise_std: float | None) -> None:
        attributes = self._h5().attrs
        units = (text_attribute(attributes, "units") or "").replace(" ", "").lower()
        if units not in _UNITS:
            raise FormatError(
                f"expected the attribute 'units' of the image to be {', '.join(_UNITS)}, got {units[:40]!r}; lengths "
                "are "
                "in the same mm, cm or m"
            )
        self._unit = _UNITS[units]
        names = ["pixel_size", "bin_size", *(_NEEDED_FAN[:2] if self._beam == "fan" else ())]
        self._lengths = {name: self._length(attributes, name) for name in names}
        self._detector = (text_attribute(attributes, "detector") or "flat").strip().lower()
        if self._detector not in ("flat", "curved"):
            raise FormatError(
                f"expected the attribute 'detector' to be 'flat' or 'curved', got {self._detector[:40]!r}"
            )
        shape = np.atleast_1d(np.asarray(attributes["image_shape"]))
        if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1 or shape.max() > 16384:
            raise FormatError(
                f"expected the attribute 'image_shape' to be two whole numbers, got {shape.tolist()!r:.60}"
            )
        self._image_shape = (int(shape[0]), int(shape[1]))
        stored_centre = number_attribute(attributes, "centre")
        self._centre = stored_centre if centre is None else centre
        if centre is not None:
            self._centre_source = "given as an option"
        else:
            self._centre_source = "from the file" if stored_centre is not None else "middle of the detector"
        stored_water = number_attribute(attributes, "mu_water")
        in_mm = None if stored_water is None else stored_water / self._unit
        self._mu_water = in_mm if mu_water is None else mu_water
        if self._mu_water is not None and not self._mu_water > 0:
            raise FormatError(f"expected mu_water > 0, got {self._mu_water}; leave it out if it is not known")
        self._noise_std = number_attribute(attributes, "noise_std") if noise_std is None else noise_std
        self._electronic = number_attribute(attributes, "electronic_std") or 0.0
        medical = number_attribute(attributes, "medical")
        self._medical = True if medical is None else bool(medical)

    def _length(self, attributes: h5py.AttributeManager, name: str) -> float:
        value = number_attribute(attributes, name)
        # A detector may stand at the axis: only its distance may be 0.
        if value is None or value < 0 or (value == 0 and name != "origin_detector"):
            raise GeometryError(f"expected the attribute {name!r} to be a length above 0, got {value}")
        return value * self._unit

    def _read_angles(self) -> None:
        data, angles = self._dataset(self._kind), self._dataset("angles")
        if data.ndim not in (2, 3) or 0 in data.shape or data.dtype.kind not in "iuf":
            raise FormatError(
                f"expected {self._kind} (slice, views, bins) or (views, bins) of numbers, got {data.dtype} {data.shape}"
            )
        shape = (1,) * (3 - data.ndim) + data.shape
        self._slices, self._views, self._bins = int(shape[0]), int(shape[1]), int(shape[2])
        if angles.shape != (self._views,):
            hint = "; the axes of the sinogram are (slice, views, bins)" if self._bins in angles.shape else ""
            raise GeometryError(f"expected {self._views} angles, one per view, got {angles.shape}{hint}")
        unit = text_attribute(angles.attrs, "units")
        self._scanned = ScannedViews.of(self._read(angles), unit, self._selection)

    def _check_companions(self) -> None:
        target, weights = self._optional("target"), self._optional("weights")
        if target is not None:
            allowed = [(self._slices, *self._image_shape)] + ([self._image_shape] if self._slices == 1 else [])
            if target.shape not in allowed:
                raise GeometryError(f"expected target of shape {allowed[0]}, got {target.shape}")
        data = self._dataset(self._kind)
        if weights is not None and (weights.shape != data.shape or self._kind == "counts"):
            raise GeometryError(
                f"expected weights of shape {data.shape} beside a sinogram, got {weights.shape} beside {self._kind}; "
                "counts carry their own"
            )
        if self._kind == "counts":
            self._check_i0()

    def _check_i0(self) -> None:
        shape = () if "i0" not in self._h5() else self._dataset("i0").shape
        if shape not in ((), (1,), (self._bins,), (self._views, self._bins)):
            raise GeometryError(
                f"expected i0 to be one number, ({self._bins},) or ({self._views}, {self._bins}), got {shape}"
            )
        values = self._incident()
        if not bool(torch.isfinite(values).all()) or not bool((values > 0).all()):
            raise NumericsError(
                f"expected i0 > 0 everywhere, got a minimum of {float(values.min()):g}; average the frames without "
                "object and subtract the dark ones"
            )

    def _incident(self) -> Tensor:
        if "i0" in self._h5():
            return self._read(self._dataset("i0")).double()
        value = number_attribute(self._h5().attrs, "i0")
        return torch.tensor(0.0 if value is None else value, dtype=torch.float64)

    def _make_header(self) -> ScanHeader:
        attributes = self._h5().attrs
        simulated = bool(number_attribute(attributes, "simulated"))
        warnings = [] if self._medical else [NOT_MEDICAL]
        warnings += [CT_INVERSE_CRIME] if simulated else []
        warnings += [] if self.geometry.known else [_UNKNOWN]
        warnings += [*self._scanned.warnings, *check_field_of_view(self.operator, medical=self._medical)]
        words = {name: text_attribute(attributes, name) for name in ("anatomy", "contrast", "plane")}
        return ScanHeader(
            format=self.format,
            n_slices=self._slices,
            image_shape=self._image_shape,
            coils=1,
            spacing_mm=self.geometry.spacing_mm,
            geometry_known=self.geometry.known,
            words=ScanWords.from_header(modality="CT", **words),
            noise_std=self._noise_std,
            simulated=simulated,
            operations=(*read_operations(attributes), *self._scanned.operations),
            warnings=tuple(warnings),
            description=text_attribute(attributes, "description"),
            views=len(self._scanned.angles),
            beam=self._beam,
            arc_deg=arc_degrees(self._scanned.angles),
            medical=self._medical,
        )

    @cached_property
    def operator(self) -> CTOperator:
        """The projector of all slices."""
        settings: dict[str, Any] = {**self._lengths, "centre": self._centre}
        try:
            if self._beam == "parallel":
                return ParallelBeamCT(self._image_shape, self._scanned.angles, self._bins, **settings)
            settings["detector"] = self._detector
            return FanBeamCT(self._image_shape, self._scanned.angles, self._bins, **settings)
        except GeometryError as error:
            raise GeometryError(f"{error}{self._suspected_unit()}") from error

    def _suspected_unit(self) -> str:
        """Name the unit that a distance was probably given in, where it is far too short for the image."""
        if self._beam != "fan":
            return ""
        radius = math.hypot(*self._image_shape) / 2 * self._lengths["pixel_size"]
        origin = self._lengths["source_origin"]
        for factor, unit in ((10.0, "cm"), (1000.0, "m")):
            if origin <= radius < origin * factor / 1.2:
                return f"; source_origin = {origin:g} mm seems to be in {unit} while pixel_size is in mm"
        return ""

    def _slice_of(self, name: str, dimensions: int, index: int) -> Tensor | None:
        dataset = self._optional(name)
        if dataset is None:
            return None
        return self._read(dataset, index if dataset.ndim == dimensions else None)

    def _measure(self, index: int) -> Measurement:
        stored = self._slice_of(self._kind, 3, index)
        if stored is None:
            raise FormatError(f"expected a dataset {self._kind!r}; the file changed while it was open")
        complete = stored.double().reshape(self._views, self._bins)[self._scanned.every]
        target = self._slice_of("target", 3, index)
        settings: dict[str, Any] = {"noise_std": self._noise_std}
        if self._kind == "counts":
            complete, settings = self._from_counts(complete, index)
        else:
            weights = self._slice_of("weights", 3, index)
            settings["noise_from"] = (complete, self._scanned.every_angle)
            if weights is not None:
                settings |= self._from_weights(complete, weights.double().reshape(self._views, self._bins), index)
        return assemble_ct(
            complete[self._scanned.picks],
            self.operator,
            index=index,
            geometry=self.geometry,
            provenance=self._provenance(),
            # Images are stored in the unit of the file.
            target=None if target is None else target.float().reshape(self._image_shape) / self._unit,
            mu_water=self._mu_water,
            centre_source=self._centre_source,
            **settings,
        )

    def _from_counts(self, counts: Tensor, index: int) -> tuple[Tensor, dict[str, Any]]:
        check_finite(counts, "counts", index)
        incident = self._incident()
        if incident.ndim == 2:
            incident = incident[self._scanned.every]
        log = log_transform(counts, incident, electronic_std=self._electronic)
        mean = float(incident.mean())
        settings: dict[str, Any] = {"photons": mean, "starved": log.starved}
        if self._noise_std is None:
            settings["inverse_variance"] = log.weights[self._scanned.picks]
        else:
            settings["noise_std"] = self._noise_std
        return log.sinogram, settings

    def _from_weights(self, sinogram: Tensor, weights: Tensor, index: int) -> dict[str, Any]:
        """Return inverse variances: relative weights, brought to scale by the noise level or an estimate of it."""
        chosen = weights[self._scanned.every]
        if not bool(torch.isfinite(chosen).all()) or bool((chosen < 0).any()) or not bool((chosen > 0).any()):
            raise NumericsError(f"expected finite weights >= 0, some above 0, in slice {index}")
        mean = float(chosen[chosen > 0].mean())
        if self._noise_std is not None:
            return {"inverse_variance": chosen[self._scanned.picks] / mean / self._noise_std**2, "noise_std": None}
        raise FormatError(
            "expected the attribute 'noise_std' beside 'weights': Var(p) = noise_std^2 mean(weights) / weights; "
            "write it "
            "or pass noise_std=..."
        )

"""Data Exchange HDF5 of tomography: raw counts, flat and dark fields, one slice per detector row.

``exchange/data`` (views, rows, bins), ``exchange/data_white`` and ``exchange/data_dark`` (frames, rows, bins),
``exchange/theta`` (views,) with the attribute ``units``. Parallel beam. The format states neither the size of a pixel
nor where the rotation axis meets the detector: the first is an option, the second is found from the projections, and
both are said.

De Carlo et al.: Scientific data exchange: a schema for HDF5-based storage of raw and analyzed data, Journal of
Synchrotron Radiation 21 (2014) 1224.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from treg_med.data.ct_assemble import NOT_MEDICAL, assemble_ct, check_field_of_view
from treg_med.data.ct_views import ScannedViews, ViewSelection
from treg_med.data.hdf5_reader import Hdf5Reader, text_attribute
from treg_med.data.orientation import unknown_geometry
from treg_med.data.records import Measurement
from treg_med.data.safe_hdf5 import check_fits_memory, hdf5_errors
from treg_med.data.source import ScanHeader
from treg_med.errors import ConfigError, FormatError, GeometryError, TregMedError
from treg_med.operators.counts import LogData, flat_field
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.operators.rotation_centre import find_rotation_centre
from treg_med.words.scan_words import ScanWords

__all__ = ["DataExchangeReader"]

_DATA, _WHITE, _DARK, _THETA = (f"exchange/{name}" for name in ("data", "data_white", "data_dark", "theta"))
_IN_BINS = (
    "the size of a detector pixel is unknown: lengths are in bins and the attenuation is per bin; "
    "pass bin_size=... in mm"
)
_NO_DARK = (
    f"there is no {_DARK}: the dark signal was taken as 0; if the detector has one, the attenuation comes out too low"
)
_UNKNOWN = "unknown geometry: an object on a rotation stage; which side is left is not known"
# The axis is the same for all rows: a few of them decide where it is.
_CENTRE_ROWS = 3


class DataExchangeReader(Hdf5Reader):
    """Reads the layout described at the top of this file.

    Parameters
    ----------
    path
        The file.
    centre
        Bin of the rotation axis; default: found from the projections by `find_rotation_centre`.
    bin_size
        Size of a detector pixel at the object in mm; default 1 with a warning.
    views, arc, start
        Leave out views as in `ViewSelection`: number of views, arc and its start in degrees.
    gain
        Detector units per photon; default: estimated from the flat fields.
    angle_unit
        "deg" or "rad", where the file does not say; default: told from the values, and said.
    medical
        True for a scan of a body, to which a medical prior applies.

    Raises
    ------
    FormatError
        Lists the datasets that are missing.
    GeometryError, ConfigError, NumericsError
        For datasets that do not fit together, an axis beyond the detector, and options that cannot be used.
    """

    format = "Data Exchange HDF5"

    def __init__(
        self,
        path: Path,
        *,
        centre: float | None = None,
        bin_size: float | None = None,
        views: int | None = None,
        arc: float | None = None,
        start: float = 0.0,
        gain: float | None = None,
        angle_unit: str | None = None,
        medical: bool = False,
    ) -> None:
        options = {
            "centre": centre,
            "bin_size": bin_size,
            "views": views,
            "arc": arc,
            "start": start,
            "gain": gain,
            "angle_unit": angle_unit,
            "medical": medical,
        }
        super().__init__(path, options)
        known = isinstance(bin_size, int | float) and math.isfinite(bin_size) and bin_size > 0
        if bin_size is not None and not known:
            raise ConfigError(f"expected bin_size > 0 in mm, got {bin_size!r}")
        self._bin_size, self._gain, self._medical = bin_size, gain, medical
        self._selection = ViewSelection(views, arc, start)
        try:
            self._check_layout()
            self._read_angles(angle_unit)
            self._centre, self._centre_source = self._find_centre(centre)
            pixel = bin_size or 1.0
            self.geometry = unknown_geometry((self._bins, self._bins, self._rows), (pixel, pixel, pixel))
            self.header = self._make_header()
        except BaseException:
            self.close()
            raise

    def _check_layout(self) -> None:
        missing = [name for name in (_DATA, _WHITE, _THETA) if name not in self._h5()]
        if missing:
            raise FormatError(
                f"expected Data Exchange datasets {_DATA}, {_WHITE} and {_THETA}, but {self.path.name!r} lacks "
                f"{', '.join(missing)}; without them counts cannot become line integrals"
            )
        data = self._dataset(_DATA)
        if data.ndim != 3 or 0 in data.shape or data.dtype.kind not in "iuf":
            raise FormatError(f"expected {_DATA} (views, rows, bins) of counts, got {data.dtype} {data.shape}")
        self._views, self._rows, self._bins = (int(n) for n in data.shape)
        for name in (_WHITE, _DARK):
            shape = self._dataset(name).shape if name in self._h5() else data.shape
            if shape[-2:] != (self._rows, self._bins):
                raise GeometryError(
                    f"expected {name} (frames, {self._rows}, {self._bins}) like the data, got {shape}"
                )
        angles = self._dataset(_THETA)
        if angles.shape != (self._views,):
            raise GeometryError(f"expected {self._views} angles in {_THETA}, one per view, got {angles.shape}")

    def _read_angles(self, angle_unit: str | None) -> None:
        dataset = self._dataset(_THETA)
        unit = angle_unit or text_attribute(dataset.attrs, "units")
        self._scanned = ScannedViews.of(self._read(dataset), unit, self._selection)
        self._operations = list(self._scanned.operations)

    def _row(self, name: str, row: int) -> Tensor | None:
        """Return (frames, bins) of one detector row as float64, None if there is no such dataset."""
        if name not in self._h5():
            return None
        dataset = self._dataset(name)
        check_fits_memory(name, dataset.size // max(1, self._rows) * 8)
        with hdf5_errors(self.path.name):
            values = np.asarray(dataset[..., row, :], dtype=np.float64)
        return torch.from_numpy(values)

    def _log(self, row: int) -> LogData:
        counts, flats = self._row(_DATA, row), self._row(_WHITE, row)
        if counts is None or flats is None:
            raise FormatError(f"expected {_DATA} and {_WHITE}; the file changed while it was open")
        return flat_field(counts[self._scanned.every], flats, self._row(_DARK, row), gain=self._gain)

    def _find_centre(self, centre: float | None) -> tuple[float, str]:
        if centre is not None:
            return float(centre), "given as an option"
        step = max(1, self._rows // _CENTRE_ROWS)
        rows = list(range(step // 2, self._rows, step))[:_CENTRE_ROWS]
        batch = torch.stack([self._log(row).sinogram for row in rows])
        try:
            found = find_rotation_centre(batch, self._scanned.every_angle)
        except TregMedError as error:
            raise type(error)(f"{error}; pass centre=... (the bin of the rotation axis) yourself") from error
        self._operations.append({"operation": "found the rotation axis", "centre": found, "rows": rows})
        return found, "estimated from the projections"

    def _make_header(self) -> ScanHeader:
        warnings = [] if self._medical else [NOT_MEDICAL]
        warnings += [_UNKNOWN, *self._scanned.warnings]
        if _DARK not in self._h5():
            warnings.append(_NO_DARK)
        if self._bin_size is None:
            warnings.append(_IN_BINS)
        else:
            warnings += check_field_of_view(self.operator, medical=self._medical)
        if self._centre_source.startswith("estimated"):
            warnings.append(
                f"the rotation axis was estimated from the projections: bin {self._centre:.2f}; streaks and doubled "
                "edges "
                "mean that it is wrong (pass centre=...)"
            )
        return ScanHeader(
            format=self.format,
            n_slices=self._rows,
            image_shape=(self._bins, self._bins),
            coils=1,
            spacing_mm=self.geometry.spacing_mm,
            words=ScanWords("CT"),
            operations=tuple(self._operations),
            warnings=tuple(warnings),
            views=len(self._scanned.angles),
            beam="parallel",
            arc_deg=arc_degrees(self._scanned.angles),
            medical=self._medical,
        )

    @cached_property
    def operator(self) -> ParallelBeamCT:
        """The projector of all slices; pixels are as large as bins."""
        size = self._bin_size or 1.0
        shape, angles = (self._bins, self._bins), self._scanned.angles
        return ParallelBeamCT(shape, angles, self._bins, pixel_size=size, bin_size=size, centre=self._centre)

    def _measure(self, index: int) -> Measurement:
        log = self._log(index)
        facts = self._provenance()
        facts["detector_units_per_photon"] = log.gain
        if log.dead:
            facts["dead_bins"] = log.dead
            facts["warnings"] = (*facts["warnings"], f"{log.dead} detector bins are dead and have no weight")
        return assemble_ct(
            log.sinogram[self._scanned.picks],
            self.operator,
            index=index,
            geometry=self.geometry,
            provenance=facts,
            inverse_variance=None if log.gain is None else log.weights[self._scanned.picks],
            noise_from=(log.sinogram, self._scanned.every_angle),
            photons=None if log.gain is None else float(log.i0[log.i0 > 0].mean()),
            starved=log.starved,
            centre_source=self._centre_source,
        )

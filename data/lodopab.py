"""LoDoPaB-CT: low-dose parallel-beam chest CT simulated from real reconstructions, in HDF5.

An observation file has one dataset ``data`` (n, 1000, 513), a ground-truth file ``data`` (n, 362, 362), n at most 128.

What the published generator fixes, and this reader undoes:

- images are mu / MU_MAX with MU_MAX = 3071 (20 - 0.02) / 1000 + 20 = 81.35858 / m, projections are post-log data
  divided by MU_MAX: p = MU_MAX data is the line integral of mu in 1/m over lengths in m, without unit;
- the image covers [-0.13, 0.13] m with 362 x 362 pixels whatever the size of the patient was, so sizes are nominal;
- the detector covers [-rho, rho], rho = sqrt(2) 0.13 m = 0.18385 m, with 513 bins about the axis;
- 1000 angles at the centres of equal parts of [0, pi): phi_i = (i + 0.5) pi / 1000;
- the *first* axis of a stored image is x and the second y, both increasing, and s = x cos phi + y sin phi. For an array
  shown with row 0 at the top, as here, that is the angle b = phi - pi/2, and no axis has to be turned;
- a stored image is the transpose of the DICOM pixels: it is shown upright after a transposition;
- 4096 photons per ray, zero counts replaced by 0.1.

There mu = 20 + HU (20 - 0.02) / 1000 in 1/m; here HU = 1000 (mu - mu_water) / mu_water with mu_water = 20 / m, which is
0.1 % nearer to water: air is -999 HU.

Leuschner, Schmidt, Otero Baguer, Maass: LoDoPaB-CT, a benchmark dataset for low-dose computed tomography
reconstruction, Scientific Data 8 (2021) 109.
"""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from treg_med.data.ct_assemble import assemble_ct, check_sinogram
from treg_med.data.ct_simulation import CTSimulation
from treg_med.data.ct_views import ViewSelection
from treg_med.data.ct_volume import SimulatedCTReader
from treg_med.data.hdf5_reader import Hdf5File, Hdf5Reader
from treg_med.data.orientation import unknown_geometry
from treg_med.data.records import Geometry, Measurement
from treg_med.data.safe_hdf5 import check_readable_file, sha256_of
from treg_med.data.source import ScanHeader
from treg_med.errors import ConfigError, FormatError
from treg_med.operators.counts import log_transform
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.words.scan_words import ScanWords

__all__ = ["IMAGE_SHAPE", "SINOGRAM_SHAPE", "LodopabReader", "LodopabTruthReader"]

SINOGRAM_SHAPE = (1000, 513)
IMAGE_SHAPE = (362, 362)
_MU_WATER = 0.020
_MU_AIR = 0.00002
#: Attenuation of 3071 HU in 1/mm: the unit of the stored images.
MU_MAX = 3071 * (_MU_WATER - _MU_AIR) / 1000 + _MU_WATER
_SIDE_MM = 260.0
_PIXEL_MM = _SIDE_MM / IMAGE_SHAPE[0]
_BIN_MM = math.sqrt(2) * _SIDE_MM / SINOGRAM_SHAPE[1]
_PHOTONS = 4096.0
# Zero counts were stored as 0.1, in single precision.
_FEWEST_COUNTS = 0.10001
_WORDS = ScanWords("CT", "chest", None, "axial")
_NOMINAL = "nominal sizes: LoDoPaB-CT gives every image 260 mm, whatever the patient measured; position unknown"
_MADE = "LoDoPaB-CT projections were computed from reconstructed images, on a finer grid and with photon noise"


def _geometry(count: int) -> Geometry:
    # Three quarter turns and a mirror are a transposition.
    return unknown_geometry((*IMAGE_SHAPE, count), (_PIXEL_MM, _PIXEL_MM, 1.0), display_rot90=3, display_flip=True)


def _check_data(dataset: h5py.Dataset, shape: tuple[int, int], what: str) -> int:
    if dataset.ndim != 3 or dataset.shape[1:] != shape or dataset.dtype.kind != "f" or dataset.shape[0] < 1:
        raise FormatError(
            f"expected LoDoPaB-CT {what} 'data' (n, {shape[0]}, {shape[1]}) of floats, got {dataset.dtype} "
            f"{dataset.shape}"
        )
    return int(dataset.shape[0])


class LodopabReader(Hdf5Reader):
    """Reads an observation file of LoDoPaB-CT; see the top of this file.

    Parameters
    ----------
    path
        The file of observations.
    truth
        The file of ground truth that belongs to it; its images, in 1/mm, become the targets.
    views, arc, start
        Leave out views as in `ViewSelection`: number of views, arc and its start in degrees.
    photons
        Photons per ray of the simulation, 4096 in the published files.

    Raises
    ------
    FormatError, ConfigError, ResourceError
        If a file has another layout, the two files do not belong together, or an option cannot be used.
    """

    format = "LoDoPaB-CT HDF5"

    def __init__(
        self,
        path: Path,
        *,
        truth: str | os.PathLike[str] | None = None,
        views: int | None = None,
        arc: float | None = None,
        start: float = 0.0,
        photons: float = _PHOTONS,
    ) -> None:
        if not (isinstance(photons, int | float) and math.isfinite(photons) and photons > 0):
            raise ConfigError(f"expected photons > 0 per ray, got {photons!r}")
        # Absolute, so that a worker with another working folder finds the file.
        beside = None if truth is None else check_readable_file(truth).absolute()
        options = {"truth": beside, "views": views, "arc": arc, "start": start, "photons": photons}
        super().__init__(path, options)
        self._photons = float(photons)
        self._truth: _TruthFile | None = None
        try:
            count = _check_data(self._dataset("data"), SINOGRAM_SHAPE, "observations")
            selection = ViewSelection(views, arc, start)
            measured = (torch.arange(SINOGRAM_SHAPE[0], dtype=torch.float64) + 0.5) * math.pi / SINOGRAM_SHAPE[0]
            self._kept, self._angles = selection.choose(measured - math.pi / 2)
            self._truth = None if beside is None else _TruthFile(beside)
            if self._truth is not None and len(self._truth) != count:
                raise FormatError(
                    f"expected a ground truth of {count} images beside {count} observations, got {len(self._truth)}; "
                    "the two files have the same number in their names"
                )
        except BaseException:
            self.close()
            raise
        self.geometry = _geometry(count)
        self.header = ScanHeader(
            format=self.format,
            n_slices=count,
            image_shape=IMAGE_SHAPE,
            coils=1,
            spacing_mm=self.geometry.spacing_mm,
            words=_WORDS,
            simulated=True,
            operations=tuple(selection.describe(len(self._kept), SINOGRAM_SHAPE[0])),
            warnings=(f"simulated measurement: {_MADE}", _NOMINAL),
            views=len(self._kept),
            beam="parallel",
            arc_deg=arc_degrees(self._angles),
        )

    def close(self) -> None:
        """Close both files; later reads raise `ResourceError`."""
        super().close()
        if self._truth is not None:
            self._truth.close()

    @cached_property
    def operator(self) -> ParallelBeamCT:
        """The projector of all slices."""
        return ParallelBeamCT(
            IMAGE_SHAPE, self._angles, SINOGRAM_SHAPE[1], pixel_size=_PIXEL_MM, bin_size=_BIN_MM
        )

    def _measure(self, index: int) -> Measurement:
        stored = self._read(self._dataset("data"), index).double()[self._kept]
        # MU_MAX in 1/m, as the stored projections are integrals over metres.
        sinogram = stored * (1000 * MU_MAX)
        check_sinogram(sinogram, index)
        counts = torch.exp(-sinogram) * self._photons
        log = log_transform(counts, self._photons, floor=_FEWEST_COUNTS)
        facts = self._provenance()
        target = None
        if self._truth is not None:
            target = self._truth.image(index)
            facts |= {"target": "ground truth of LoDoPaB-CT, 1/mm", "target_sha256": self._truth.sha256}
        return assemble_ct(
            sinogram,
            self.operator,
            index=index,
            geometry=self.geometry,
            provenance=facts,
            inverse_variance=log.weights,
            target=target,
            mu_water=_MU_WATER,
            photons=self._photons,
            starved=log.starved,
            centre_source="middle of the detector, as documented",
        )


class _TruthFile(Hdf5File):
    """A file of ground truth."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._count = _check_data(self._dataset("data"), IMAGE_SHAPE, "ground truth")

    def __len__(self) -> int:
        return self._count

    def image(self, index: int) -> Tensor:
        """Return image ``index`` (362, 362) float32 in 1/mm."""
        return self._read(self._dataset("data"), index).to(torch.float32) * MU_MAX

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, computed when first needed."""
        return sha256_of(self.path)


class LodopabTruthReader(SimulatedCTReader):
    """Simulates a scan of the images of a ground-truth file of LoDoPaB-CT.

    Parameters
    ----------
    path
        The file of ground truth.
    views, arc, photons, electronic_std, beam, seed
        As in `CTSimulation`; mu_water is that of the data set, 0.020 / mm.

    Raises
    ------
    FormatError, ConfigError
        For another layout, and for settings that cannot be used.
    """

    format = "LoDoPaB-CT ground truth HDF5"

    def __init__(
        self,
        path: Path,
        *,
        views: int = CTSimulation.views,
        arc: float | None = CTSimulation.arc,
        photons: float | None = CTSimulation.photons,
        electronic_std: float = CTSimulation.electronic_std,
        beam: str = CTSimulation.beam,
        seed: int = CTSimulation.seed,
    ) -> None:
        simulation = CTSimulation(views, arc, photons, electronic_std, beam, seed, _MU_WATER)
        options: dict[str, Any] = simulation.options()
        options.pop("mu_water")
        self._truth = _TruthFile(Path(path).absolute())
        super().__init__(
            path,
            options,
            simulation=simulation,
            geometry=_geometry(len(self._truth)),
            pixel_size=_PIXEL_MM,
            words=_WORDS,
            warnings=(_NOMINAL,),
        )

    def close(self) -> None:
        """Close the file; later reads raise `ResourceError`."""
        super().close()
        self._truth.close()

    def attenuation(self, index: int) -> Tensor:
        """Return slice ``index`` (H, W) in 1/mm."""
        return self._truth.image(index)

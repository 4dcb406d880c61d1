"""CT volumes in Hounsfield units: simulated scans of their slices.

An image is not a measurement: the counts are computed from it, by a finer model than the one that reconstructs them but
without scatter, beam hardening or motion. The header, the provenance and every sidecar say so.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from treg_med.data.ct_assemble import CT_INVERSE_CRIME, assemble_ct
from treg_med.data.ct_simulation import CTSimulation
from treg_med.data.hdf5_reader import Hdf5File, number_attribute, text_attribute
from treg_med.data.nifti import NiftiVolume
from treg_med.data.orientation import choose_slice_axis, oriented_geometry, plane_of, to_images, unknown_geometry
from treg_med.data.records import Geometry, Measurement
from treg_med.data.source import ScanHeader, ScanReader
from treg_med.errors import ConfigError, FormatError, GeometryError
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.hounsfield_units import attenuation, clean_hounsfield
from treg_med.words.scan_words import ScanWords, words_from_label

__all__ = ["HounsfieldHdf5Reader", "HounsfieldReader", "SimulatedCTReader"]

# Pixels whose sides differ by less than this are square.
_SQUARE = 0.01
_UNKNOWN = "unknown geometry: the header gives voxel sizes but no position (both codes are 0)"


class SimulatedCTReader(ScanReader):
    """Base of the readers that simulate a scan from images; a subclass gives them by `attenuation`.

    Parameters
    ----------
    path, options
        As in `ScanReader`.
    simulation
        What to simulate.
    geometry
        Of the images.
    pixel_size
        Side of a pixel in mm.
    words, warnings, operations
        For the header.
    """

    def __init__(
        self,
        path: Path,
        options: Mapping[str, Any],
        *,
        simulation: CTSimulation,
        geometry: Geometry,
        pixel_size: float,
        words: ScanWords,
        warnings: tuple[str, ...] = (),
        operations: tuple[Mapping[str, Any], ...] = (),
    ) -> None:
        super().__init__(path, options)
        self.simulation = simulation
        self.geometry = geometry
        self.pixel_size = pixel_size
        shape = (geometry.shape[0], geometry.shape[1])
        self.header = ScanHeader(
            format=self.format,
            n_slices=geometry.shape[2],
            image_shape=shape,
            coils=1,
            spacing_mm=geometry.spacing_mm,
            geometry_known=geometry.known,
            words=words,
            noise_std=0.0 if simulation.photons is None else None,
            simulated=True,
            operations=(*operations, simulation.describe()),
            warnings=(CT_INVERSE_CRIME, *warnings),
            views=simulation.views,
            beam=simulation.beam,
            arc_deg=arc_degrees(simulation.angles()),
        )

    @abstractmethod
    def attenuation(self, index: int) -> Tensor:
        """Return slice ``index`` (H, W) float32 in 1/mm."""

    @cached_property
    def operator(self) -> CTOperator:
        """The projector of all slices."""
        return self.simulation.operator(self.header.image_shape, self.pixel_size)

    @cached_property
    def fine_operator(self) -> CTOperator:
        """The projector that makes the data."""
        return self.simulation.fine_operator(self.header.image_shape, self.pixel_size)

    def _measure(self, index: int) -> Measurement:
        target = self.attenuation(index)
        data = self.simulation.slice(target, index, self.fine_operator)
        facts = self._provenance() | {"target": "the image that the counts were simulated from, 1/mm"}
        return assemble_ct(
            data.sinogram,
            self.operator,
            index=index,
            geometry=self.geometry,
            provenance=facts,
            inverse_variance=data.inverse_variance,
            noise_std=0.0 if data.inverse_variance is None else None,
            target=target,
            mu_water=self.simulation.mu_water,
            photons=self.simulation.photons,
            starved=data.starved,
            centre_source="middle of the detector, as simulated",
        )


class HounsfieldReader(SimulatedCTReader):
    """Simulates a CT scan slice by slice from the Hounsfield units of a NIfTI file.

    Parameters
    ----------
    path
        The file.
    slice_axis
        Stored axis (0, 1, 2) to slice across; default: the one of coarsest spacing, else the axial one.
    volume
        Which volume of a 4-D file.
    offset
        HU to add to the stored values, for files without the rescale intercept (-1024) or regions without air (0);
        default: the values are Hounsfield units and have to look like it.
    views, arc, photons, electronic_std, beam, seed, mu_water
        As in `CTSimulation`.

    Raises
    ------
    FormatError, GeometryError, NumericsError, UnsafeFileError, ResourceError, ConfigError
        As in `NiftiVolume.read`, for pixels that are not square, and for settings that cannot be used.
    """

    format = "NIfTI CT (Hounsfield units)"

    def __init__(
        self,
        path: Path,
        *,
        slice_axis: int | None = None,
        volume: int | None = None,
        offset: float | None = None,
        views: int = CTSimulation.views,
        arc: float | None = CTSimulation.arc,
        photons: float | None = CTSimulation.photons,
        electronic_std: float = CTSimulation.electronic_std,
        beam: str = CTSimulation.beam,
        seed: int = CTSimulation.seed,
        mu_water: float = CTSimulation.mu_water,
    ) -> None:
        simulation = CTSimulation(views, arc, photons, electronic_std, beam, seed, mu_water)
        if slice_axis not in (None, 0, 1, 2):
            raise ConfigError(f"expected slice_axis 0, 1 or 2, got {slice_axis!r}")
        stored = NiftiVolume.read(Path(path).absolute(), volume)
        axis = choose_slice_axis(stored.affine) if slice_axis is None else slice_axis
        geometry = oriented_geometry(
            stored.affine,
            stored.values.shape,
            axis,
            sform_code=stored.sform_code,
            qform_code=stored.qform_code,
            xyzt_units=stored.xyzt_units,
        )
        # The name is only looked through for whitelisted words; the free text of the header is never read.
        named = words_from_label(Path(path).name.split(".")[0], modality="CT")
        plane = plane_of(stored.affine, axis) if geometry.known else None
        values, notes = _cleaned(torch.from_numpy(np.ascontiguousarray(stored.values)), offset)
        super().__init__(
            path,
            {"slice_axis": slice_axis, "volume": volume, "offset": offset, **simulation.options()},
            simulation=simulation,
            geometry=geometry,
            pixel_size=_square_pixel(geometry),
            words=ScanWords("CT", named.anatomy, None, plane),
            warnings=(*notes, *(() if geometry.known else (_UNKNOWN,))),
            operations=({"operation": "slice", "slice_axis": axis, "volume": volume},),
        )
        self._images = to_images(values.numpy(), geometry)

    def close(self) -> None:
        """Forget the volume; later reads raise `ResourceError`."""
        super().close()
        self._images = self._images[:0]

    def attenuation(self, index: int) -> Tensor:
        """Return slice ``index`` (H, W) float32 in 1/mm; below air there is nothing."""
        image = torch.from_numpy(np.ascontiguousarray(self._images[:, :, index]))
        return _attenuation(image, self.simulation.mu_water)


class HounsfieldHdf5Reader(SimulatedCTReader):
    """Simulates a CT scan from an HDF5 volume ``hounsfield`` (slice, H, W) or (H, W), upright, row 0 at the top.

    Attributes of the file: ``pixel_size`` in mm (needed), ``slice_spacing`` in mm, and the whitelisted words
    ``anatomy``, ``contrast`` and ``plane``.

    Parameters
    ----------
    path
        The file.
    offset
        HU to add to the stored values; default: they are Hounsfield units and have to look like it.
    views, arc, photons, electronic_std, beam, seed, mu_water
        As in `CTSimulation`.

    Raises
    ------
    FormatError, ConfigError
        For another layout, and for settings that cannot be used.
    """

    format = "HDF5 CT (Hounsfield units)"

    def __init__(
        self,
        path: Path,
        *,
        offset: float | None = None,
        views: int = CTSimulation.views,
        arc: float | None = CTSimulation.arc,
        photons: float | None = CTSimulation.photons,
        electronic_std: float = CTSimulation.electronic_std,
        beam: str = CTSimulation.beam,
        seed: int = CTSimulation.seed,
        mu_water: float = CTSimulation.mu_water,
    ) -> None:
        simulation = CTSimulation(views, arc, photons, electronic_std, beam, seed, mu_water)
        self._volume = _HounsfieldFile(Path(path).absolute())
        values, notes = self._volume.values(offset)
        pixel, gap, words = self._volume.facts()
        shape = (int(values.shape[1]), int(values.shape[2]), int(values.shape[0]))
        super().__init__(
            path,
            {"offset": offset, **simulation.options()},
            simulation=simulation,
            geometry=unknown_geometry(shape, (pixel, pixel, gap)),
            pixel_size=pixel,
            words=words,
            warnings=(*notes, "unknown geometry: the file gives sizes but no position in the patient"),
        )
        self._values = values

    def close(self) -> None:
        """Close the file and forget the volume; later reads raise `ResourceError`."""
        super().close()
        self._volume.close()
        self._values = self._values[:0]

    def attenuation(self, index: int) -> Tensor:
        """Return slice ``index`` (H, W) float32 in 1/mm; below air there is nothing."""
        return _attenuation(self._values[index], self.simulation.mu_water)


class _HounsfieldFile(Hdf5File):
    """The file of a `HounsfieldHdf5Reader`."""

    def values(self, offset: float | None) -> tuple[Tensor, tuple[str, ...]]:
        """Return the volume (slice, H, W) in HU and what was mended."""
        dataset = self._dataset("hounsfield")
        if dataset.ndim not in (2, 3) or 0 in dataset.shape or dataset.dtype.kind not in "iuf":
            raise FormatError(
                f"expected hounsfield (slice, H, W) or (H, W) of numbers, got {dataset.dtype} {dataset.shape}"
            )
        stored = self._read(dataset).to(torch.float32)
        values, notes = _cleaned(stored.reshape(-1, *stored.shape[-2:]), offset)
        if offset is None and float(values.min()) > -200:
            raise FormatError(
                f"expected Hounsfield units, which reach -1000 in air, got {float(values.min()):g} to "
                f"{float(values.max()):g}; apply the rescale slope and intercept of the scanner"
            )
        return values, notes

    def facts(self) -> tuple[float, float, ScanWords]:
        """Return pixel size and slice spacing in mm, and the words."""
        attributes: h5py.AttributeManager = self._h5().attrs
        pixel = number_attribute(attributes, "pixel_size")
        gap = number_attribute(attributes, "slice_spacing")
        if pixel is None or pixel <= 0 or (gap is not None and gap <= 0):
            raise FormatError(
                f"expected the attribute pixel_size in mm, above 0 (and slice_spacing, if given), got {pixel} and "
                f"{gap}; "
                "write it as file.attrs['pixel_size'] = 0.8"
            )
        words = {name: text_attribute(attributes, name) for name in ("anatomy", "contrast", "plane")}
        return pixel, gap or 1.0, ScanWords.from_header(modality="CT", **words)


def _cleaned(values: Tensor, offset: float | None) -> tuple[Tensor, tuple[str, ...]]:
    """Return a volume in true HU and, where something was mended, the sentence that says so."""
    cleaned, note = clean_hounsfield(values, offset=offset)
    return cleaned.to(torch.float32), (f"Hounsfield units were mended: {note}",) if note else ()


def _attenuation(image: Tensor, mu_water: float) -> Tensor:
    return attenuation(image, mu_water).clamp_min(0.0).to(torch.float32)


def _square_pixel(geometry: Geometry) -> float:
    rows, columns, _ = geometry.spacing_mm
    if abs(rows - columns) > _SQUARE * max(rows, columns):
        raise GeometryError(
            f"expected square pixels, got {rows:.4g} x {columns:.4g} mm in the plane of the slices; resample the "
            "volume "
            "to one spacing in that plane, or choose another slice_axis"
        )
    return math.sqrt(rows * columns)

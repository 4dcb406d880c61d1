"""K-space along any trajectory (radial, spiral) in HDF5: a dataset ``kspace`` beside a dataset ``trajectory``.

Datasets:

- ``kspace``: (slice, coil, sample), (coil, sample) or (sample,), complex; samples may have two axes, (spoke, sample);
- ``trajectory``: (sample, 2) or (spoke, sample, 2), cycles per pixel from -0.5 to 0.5, row frequency then column
  frequency, the same for every slice and coil;
- ``sensitivity_maps`` (optional): (coil, y, x) or (slice, coil, y, x), complex;
- ``target`` (optional): (slice, y, x) or (y, x).

Attributes as of raw k-space (see `generic_hdf5`), and ``image_shape``, (rows, columns).
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from treg_med.data.assemble import INVERSE_CRIME, check_finite
from treg_med.data.generic_hdf5 import read_geometry, read_operations
from treg_med.data.hdf5_reader import Hdf5Reader, number_attribute, single_precision, text_attribute
from treg_med.data.records import Measurement
from treg_med.data.source import ScanHeader
from treg_med.errors import ConfigError, FormatError, GeometryError
from treg_med.operators import CoilMaps, LinearOperator, NonuniformFFT, centered_fft2, estimate_sensitivity_maps
from treg_med.words.scan_words import ScanWords

__all__ = ["TrajectoryReader"]

_NYQUIST = 0.5
# Files hold frequencies in single precision.
_TOLERANCE = 1e-3
# Enough for the low frequencies that coil maps are estimated from.
_COIL_ITERATIONS = 15
_CALIBRATION = 24
_UNKNOWN = "unknown geometry: the file carries no position or voxel size; 1 mm voxels are assumed"


class TrajectoryReader(Hdf5Reader):
    """Reads the layout described at the top of this file.

    Parameters
    ----------
    path
        The file.
    image_size
        Side of the square image in pixels, where the file has no ``image_shape``.
    noise_std
        Overrides the noise level of the file; None leaves it to be estimated where the file has none.

    Raises
    ------
    FormatError, GeometryError
        If a dataset has the wrong type or shape, or the trajectory is not in cycles per pixel.
    ConfigError
        If nothing says how large the image is.
    """

    format = "k-space along a trajectory, HDF5"

    def __init__(self, path: Path, *, image_size: int | None = None, noise_std: float | None = None) -> None:
        super().__init__(path, {"image_size": image_size, "noise_std": noise_std})
        try:
            self._image_shape = self._read_image_shape(image_size)
            self._points = self._read_points()
            self._slices, self._coils = self._read_layout()
            self._check_companions()
            attributes = self._h5().attrs
            self.geometry = read_geometry(attributes, (*self._image_shape, self._slices))
            simulated = bool(number_attribute(attributes, "simulated"))
            stored_noise = number_attribute(attributes, "noise_std")
            self.header = ScanHeader(
                format=self.format,
                n_slices=self._slices,
                image_shape=self._image_shape,
                coils=self._coils,
                spacing_mm=self.geometry.spacing_mm,
                geometry_known=self.geometry.known,
                words=ScanWords.from_header(
                    **{k: attributes.get(k) for k in ("modality", "anatomy", "contrast", "plane")}
                ),
                noise_std=stored_noise if noise_std is None else noise_std,
                simulated=simulated,
                operations=tuple(read_operations(attributes)),
                warnings=(*((INVERSE_CRIME,) if simulated else ()), *(() if self.geometry.known else (_UNKNOWN,))),
                description=text_attribute(attributes, "description"),
            )
        except BaseException:
            self.close()
            raise

    def _read_image_shape(self, image_size: int | None) -> tuple[int, int]:
        if image_size is not None:
            if image_size < 2:
                raise ConfigError(f"expected an image of at least 2 pixels a side, got image_size={image_size}")
            return image_size, image_size
        stored = np.asarray(self._h5().attrs.get("image_shape", ()))
        if stored.shape != (2,) or stored.dtype.kind not in "iu" or stored.min() < 2:
            raise ConfigError(
                f"{self.path.name!r} does not say how large the image is (attribute image_shape, rows and columns); "
                "pass image_size (--reader image_size=N)"
            )
        return int(stored[0]), int(stored[1])

    def _read_points(self) -> Tensor:
        points = self._read(self._dataset("trajectory")).double()
        if points.ndim < 2 or points.shape[-1] != 2:
            raise GeometryError(
                f"expected a trajectory (sample, 2) or (spoke, sample, 2), row then column, got {tuple(points.shape)}"
            )
        largest = float(points.abs().max())
        if not math.isfinite(largest):
            raise FormatError("expected a finite trajectory, got NaN or Inf")
        if largest > _NYQUIST + _TOLERANCE:
            guess = "radians: divide by 2 pi" if largest <= math.pi + _TOLERANCE else "steps of the grid: divide by N"
            raise GeometryError(
                f"expected a trajectory in cycles per pixel, from -0.5 to 0.5, got values up to {largest:.4g} "
                f"(perhaps {guess})"
            )
        return points.reshape(-1, 2)

    def _read_layout(self) -> tuple[int, int]:
        kspace, spokes = self._dataset("kspace"), self._dataset("trajectory").shape[:-1]
        if kspace.dtype.kind != "c" or kspace.shape[-len(spokes) :] != spokes:
            raise GeometryError(
                f"expected complex k-space (slice, coil, {', '.join(map(str, spokes))}) beside this trajectory, got "
                f"{kspace.dtype} {kspace.shape}"
            )
        leading = (1, 1, *kspace.shape[: -len(spokes)])[-2:] if kspace.ndim - len(spokes) <= 2 else ()
        if len(leading) != 2 or 0 in leading:
            raise GeometryError(f"expected k-space (slice, coil, ...) beside this trajectory, got {kspace.shape}")
        return int(leading[0]), int(leading[1])

    def _check_companions(self) -> None:
        height, width = self._image_shape
        one = {"target": (height, width), "sensitivity_maps": (self._coils, height, width)}
        for name, shape in one.items():
            dataset = self._optional(name)
            if dataset is not None and dataset.shape not in (shape, (self._slices, *shape)):
                raise GeometryError(f"expected {name} of shape {shape} for this image, got {dataset.shape}")

    def _of_slice(self, name: str, dimensions: int, index: int) -> Tensor | None:
        dataset = self._optional(name)
        if dataset is None:
            return None
        return single_precision(self._read(dataset, index if dataset.ndim > dimensions else None))

    @cached_property
    def _transform(self) -> NonuniformFFT:
        """Of all slices: its interpolation matrix is made once."""
        return NonuniformFFT(self._image_shape, self._points)

    def _measure(self, index: int) -> Measurement:
        kspace = self._dataset("kspace")
        spokes = len(self._dataset("trajectory").shape) - 1
        stored = self._read(kspace, index if kspace.ndim == spokes + 2 else None)
        y = stored.to(torch.complex64).reshape(self._coils, -1)
        check_finite(y[:, None], index)
        facts = self._provenance()
        facts["noise_std"] = "estimated by the solver" if self.header.noise_std is None else "given"
        transform = self._transform
        maps = self._of_slice("sensitivity_maps", 3, index)
        facts["sensitivity_maps"] = "single coil"
        if maps is not None:
            facts["sensitivity_maps"] = "given"
        elif self._coils > 1:
            maps = _estimated_maps(transform, y)
            facts["sensitivity_maps"] = "estimated from the low frequencies (ESPIRiT)"
        operator: LinearOperator = transform if maps is None else transform @ CoilMaps(maps)
        data = y if maps is not None else y[0]
        peak = float(operator.start(data).abs().max())
        target = self._of_slice("target", 2, index)
        return Measurement(
            y=data,
            operator=operator,
            noise_std=self.header.noise_std,
            scale=1 / peak if peak > 0 else 1.0,
            target=target,
            geometry=self.geometry.at_slice(index),
            provenance=facts,
        )


def _estimated_maps(transform: NonuniformFFT, y: Tensor) -> Tensor:
    """Estimate coil maps ``(coils, H, W)`` from the Cartesian low frequencies of every coil's own image."""
    images = transform.pinv(y, max_iter=_COIL_ITERATIONS, rtol=1e-4)
    sides = [min(_CALIBRATION, n) for n in transform.domain_shape]
    return estimate_sensitivity_maps(centered_fft2(images), calibration_size=(sides[0], sides[1]))

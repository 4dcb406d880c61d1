"""Fan-beam scans of acrylic discs of the Helsinki Tomography Challenge 2022, in HDF5.

Datasets: ``sinogram`` (views, bins) line integrals, already flat-fielded and log-transformed; ``angles_deg`` (views,);
for the challenge discs ``reference_fbp`` (n, n), attenuation per ``effectivePixelSizePost`` mm (about 0.148, whatever
n is), and ``reference_segmentation`` (n, n), 1 where there is acrylic. The geometry is in the attributes, in mm. A
point (x, y), x to the right and y up on the reference image, is seen from angle b at t = (x cos b + y sin b) / U on the
detector scaled to the axis, U = 1 + (-x sin b + y cos b) / R.

Meaney, Silva de Moura, Juvonen, Siltanen: Helsinki Tomography Challenge 2022 (HTC2022) open tomographic dataset, doi
10.5281/zenodo.8041800.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from treg_med.data.ct_assemble import NOT_MEDICAL, assemble_ct, check_field_of_view
from treg_med.data.ct_views import ScannedViews, ViewSelection
from treg_med.data.hdf5_reader import Hdf5Reader, number_attribute
from treg_med.data.orientation import unknown_geometry
from treg_med.data.records import Measurement
from treg_med.data.source import ScanHeader
from treg_med.errors import ConfigError, FormatError, GeometryError
from treg_med.operators.ct_angles import arc_degrees
from treg_med.operators.fan_beam import FanBeamCT
from treg_med.words.scan_words import ScanWords

__all__ = ["Htc2022Reader"]

_ATTRIBUTES = {
    "source_origin": "distanceSourceOrigin",
    "source_detector": "distanceSourceDetector",
    "bin_size": "pixelSizePost",
    "pixel_size": "effectivePixelSizePost",
}
_IMAGE_SIZE = 512
_UNKNOWN = "unknown geometry: an object on a turntable; only sizes are known"
_REFERENCE = (
    "the target is the reference of the challenge, a filtered backprojection of the complete scan in half precision: "
    "it has noise and streaks of its own and is no ground truth"
)


class Htc2022Reader(Hdf5Reader):
    """Reads one scan of the Helsinki Tomography Challenge 2022; see the top of this file.

    Parameters
    ----------
    path
        The file.
    views, arc, start
        Leave out views as in `ViewSelection`: number of views, arc and its start in degrees.
    image_size
        Pixels along a side of the image; default that of the reference, else 512.
    noise_std
        One noise level for all rays; default: photon noise whose level is estimated from all views.

    Raises
    ------
    FormatError, GeometryError, ConfigError
        If a dataset or attribute is missing or does not fit, and for options that cannot be used.
    """

    format = "HTC2022 fan-beam HDF5"

    def __init__(
        self,
        path: Path,
        *,
        views: int | None = None,
        arc: float | None = None,
        start: float = 0.0,
        image_size: int | None = None,
        noise_std: float | None = None,
    ) -> None:
        options = {"views": views, "arc": arc, "start": start, "image_size": image_size, "noise_std": noise_std}
        super().__init__(path, options)
        self._selection = ViewSelection(views, arc, start)
        self._noise_std = noise_std
        try:
            self._read_geometry(image_size)
        except BaseException:
            self.close()
            raise

    def _read_geometry(self, image_size: int | None) -> None:
        sinogram, angles = self._dataset("sinogram"), self._dataset("angles_deg")
        if sinogram.ndim != 2 or 0 in sinogram.shape or angles.shape != sinogram.shape[:1]:
            raise FormatError(
                f"expected a sinogram (views, bins) with one angle per view, got {sinogram.shape} and {angles.shape}"
            )
        self._lengths = {}
        for name, attribute in _ATTRIBUTES.items():
            value = number_attribute(self._h5().attrs, attribute)
            if value is None or value <= 0:
                raise FormatError(f"expected the attribute {attribute!r} in mm, got {value}; copy the file again")
            self._lengths[name] = value
        if self._lengths["source_detector"] <= self._lengths["source_origin"]:
            raise GeometryError(
                f"expected the detector beyond the axis, got {self._lengths['source_detector']:g} mm from the source "
                "and "
                f"the axis at {self._lengths['source_origin']:g} mm; exchange the two attributes"
            )
        self._scanned = ScannedViews.of(self._read(angles), "deg", self._selection)
        self._bins = int(sinogram.shape[1])
        self._set_image(image_size)
        self.header = self._make_header()

    def _set_image(self, image_size: int | None) -> None:
        reference = self._optional("reference_fbp")
        if reference is not None and (reference.ndim != 2 or len(set(reference.shape)) != 1):
            raise FormatError(f"expected a square reference_fbp (n, n), got {reference.shape}")
        stored = _IMAGE_SIZE if reference is None else int(reference.shape[0])
        size = stored if image_size is None else image_size
        if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 4096:
            raise ConfigError(f"expected an image_size of 8 to 4096 pixels, got {size!r}")
        self._has_reference = reference is not None and size == stored
        self._side = size
        # The field of view is that of 512 pixels of the published size, whatever the number of pixels.
        self._pixel = self._lengths["pixel_size"] * _IMAGE_SIZE / size
        self.geometry = unknown_geometry((size, size, 1), (self._pixel, self._pixel, 1.0))

    def _make_header(self) -> ScanHeader:
        return ScanHeader(
            format=self.format,
            n_slices=1,
            image_shape=(self._side, self._side),
            coils=1,
            spacing_mm=self.geometry.spacing_mm,
            words=ScanWords("CT"),
            noise_std=self._noise_std,
            operations=self._scanned.operations,
            warnings=(NOT_MEDICAL, _UNKNOWN, *self._scanned.warnings, *((_REFERENCE,) if self._has_reference else ())),
            views=len(self._scanned.angles),
            beam="fan",
            arc_deg=arc_degrees(self._scanned.angles),
            medical=False,
        )

    @cached_property
    def operator(self) -> FanBeamCT:
        """The projector of this scan."""
        origin = self._lengths["source_origin"]
        return FanBeamCT(
            (self._side, self._side),
            self._scanned.angles,
            self._bins,
            source_origin=origin,
            origin_detector=self._lengths["source_detector"] - origin,
            pixel_size=self._pixel,
            bin_size=self._lengths["bin_size"],
        )

    def segmentation(self) -> Tensor | None:
        """Return the reference segmentation (H, W) bool, True where there is acrylic, or None if there is none."""
        stored = self._optional("reference_segmentation")
        if stored is None or stored.shape != (self._side, self._side):
            return None
        return self._read(stored) != 0

    def _measure(self, index: int) -> Measurement:
        complete = self._read(self._dataset("sinogram")).to(torch.float32)[self._scanned.every]
        facts = self._provenance()
        target = None
        if self._has_reference:
            target = self._read(self._dataset("reference_fbp")).to(torch.float32) / self._lengths["pixel_size"]
            facts["target"] = "reference filtered backprojection of the complete scan, 1/mm, no ground truth"
        facts["warnings"] = (*facts["warnings"], *check_field_of_view(self.operator, medical=False))
        return assemble_ct(
            complete[self._scanned.picks],
            self.operator,
            index=index,
            geometry=self.geometry,
            provenance=facts,
            noise_std=self._noise_std,
            # All views: neighbours that are half a degree apart show the noise, a few views do not.
            noise_from=(complete, self._scanned.every_angle),
            target=target,
            centre_source="middle of the detector, as documented",
        )

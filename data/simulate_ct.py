"""Writing a simulated CT scan: a volume in Hounsfield units in, the project's sinogram layout out, target inside."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treg_med.data.atomic import StagedFiles, writing
from treg_med.data.ct_simulation import CTSimulation
from treg_med.data.ct_volume import SimulatedCTReader
from treg_med.data.nifti import looks_like_hounsfield, looks_like_nifti
from treg_med.data.orientation import slices_geometry
from treg_med.data.records import RESEARCH_ONLY, Geometry
from treg_med.data.safe_hdf5 import check_readable_file
from treg_med.data.scan_formats import FileContent
from treg_med.data.simulate import checked_target, chosen_slices
from treg_med.data.sinogram_hdf5 import LAYOUT, LAYOUT_VERSION
from treg_med.errors import FormatError
from treg_med.operators.ct_rays import FanRays

__all__ = ["is_hounsfield_volume", "simulate_ct_scan"]


def is_hounsfield_volume(source: str | os.PathLike[str], volume: int | None = None) -> bool:
    """Whether a file is a CT volume in Hounsfield units, which `simulate_ct_scan` and not `simulate_scan` takes."""
    content = FileContent.of(check_readable_file(source))
    if content.keys is not None:
        return "hounsfield" in content.keys
    return looks_like_nifti(content.head) and looks_like_hounsfield(Path(os.fspath(source)), volume)


def simulate_ct_scan(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    views: int = CTSimulation.views,
    arc: float | None = CTSimulation.arc,
    photons: float | None = CTSimulation.photons,
    electronic_std: float = CTSimulation.electronic_std,
    beam: str = CTSimulation.beam,
    seed: int = CTSimulation.seed,
    mu_water: float = CTSimulation.mu_water,
    slices: slice | Sequence[int] | None = None,
    slice_axis: int | None = None,
    volume: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Simulate a CT scan of a volume in Hounsfield units and write it as sinogram HDF5.

    The file holds counts and i0 (line integrals where no noise was asked for), angles, geometry, the attenuation image
    in 1/mm as ``target``, mu_water, whitelisted words and what was done. It appears complete or not at all.

    Parameters
    ----------
    source
        Path of a NIfTI file or of an HDF5 file with ``hounsfield``.
    out
        File to write, in an existing folder.
    views, arc, photons, electronic_std, beam, seed, mu_water
        As in `CTSimulation`.
    slices
        Which slices to write (default all): a ``slice`` or evenly spaced indices.
    slice_axis, volume
        As in `HounsfieldReader`; for NIfTI only.
    overwrite
        Replace an existing file, once the new one is complete.

    Returns
    -------
    The path written.

    Raises
    ------
    ResourceError
        If the folder cannot be written to or the file exists.
    ConfigError, FormatError, GeometryError, NumericsError
        For settings or images that cannot be used.
    """
    from treg_med.data.scan_formats import open_scan

    settings = CTSimulation(views, arc, photons, electronic_std, beam, seed, mu_water).options()
    if not is_hounsfield_volume(source, volume):
        raise FormatError(
            f"expected a CT volume in Hounsfield units to simulate from, got {Path(os.fspath(source)).name!r}, which "
            "has "
            "no values below -200; MR magnitudes are simulated by simulate_scan"
        )
    final = checked_target(out)
    axes = {k: v for k, v in (("slice_axis", slice_axis), ("volume", volume)) if v is not None}
    with StagedFiles(overwrite=overwrite) as staged, open_scan(source, **settings, **axes) as reader:
        temporary = staged.path(final)
        if not isinstance(reader, SimulatedCTReader):
            raise FormatError(f"expected a CT volume in Hounsfield units, got {reader.header.format}")
        chosen = chosen_slices(slices, len(reader))
        with writing(f"writing {final.name!r}"):
            _write_file(temporary, reader, chosen)
        staged.commit()
    return final


def _write_file(path: Path, reader: SimulatedCTReader, chosen: list[int]) -> None:
    geometry = slices_geometry(reader.geometry, chosen)
    height, width = geometry.shape[:2]
    operator, simulation = reader.operator, reader.simulation
    stored: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    kind = "sinogram" if simulation.photons is None else "counts"
    with h5py.File(path, "x") as file:
        shape = (len(chosen), operator.views, operator.n_bins)
        data = file.create_dataset(kind, shape, "float32", chunks=(1, *shape[1:]), **stored)
        data.attrs["axes"] = "slice,view,bin"
        images = (len(chosen), height, width)
        target = file.create_dataset("target", images, "float32", chunks=(1, height, width), **stored)
        file.create_dataset("angles", data=operator.angles.cpu().numpy()).attrs["units"] = "rad"
        for position, index in enumerate(chosen):
            image = reader.attenuation(index)
            result = simulation.slice(image, index, reader.fine_operator)
            values: Tensor = result.sinogram if result.counts is None else result.counts
            data[position] = values.to(torch.float32).numpy()
            target[position] = image.numpy()
        if simulation.photons is None:
            file.attrs["noise_std"] = 0.0
        else:
            file.attrs["i0"] = simulation.photons
            file.attrs["electronic_std"] = simulation.electronic_std
        _write_attributes(file, reader, geometry)


def _write_attributes(file: h5py.File, reader: SimulatedCTReader, geometry: Geometry) -> None:
    operator, header = reader.operator, reader.header
    words = {f.name: getattr(header.words, f.name) for f in fields(header.words)}
    rays = operator.rays
    if isinstance(rays, FanRays):
        file.attrs.update(
            {"source_origin": rays.source_origin, "origin_detector": rays.origin_detector, "detector": rays.shape}
        )
    file.attrs.update(
        {
            "layout": LAYOUT,
            "layout_version": LAYOUT_VERSION,
            "notice": RESEARCH_ONLY,
            "simulated": True,
            "geometry": header.beam,
            "units": "1/mm",
            "image_shape": np.array(operator.image_shape, dtype=np.int32),
            "pixel_size": operator.pixel_size,
            "bin_size": operator.bin_size,
            "centre": operator.centre,
            "mu_water": reader.simulation.mu_water,
            "operations": json.dumps([dict(o) for o in header.operations], allow_nan=False),
            "display_rot90": geometry.display_rot90,
            "display_flip": geometry.display_flip,
            **{name: word for name, word in words.items() if word is not None},
        }
    )
    affine: npt.NDArray[np.float64] = geometry.affine
    file.attrs["affine"] = affine
    file.attrs["storage"] = np.array(geometry.storage, dtype=np.int8)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        file.attrs[name] = getattr(geometry, name)

"""Writing a simulated scan: images in, the project's raw k-space layout out, with the target inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treg_med.data.atomic import StagedFiles, check_writable_folder, safe_name, writing
from treg_med.data.generic_hdf5 import LAYOUT, LAYOUT_VERSION
from treg_med.data.nifti import NiftiReader, looks_like_nifti
from treg_med.data.orientation import slices_geometry, unknown_geometry
from treg_med.data.records import RESEARCH_ONLY, Geometry
from treg_med.data.safe_hdf5 import check_readable_file
from treg_med.data.scan_formats import FileContent
from treg_med.data.simulation import KspaceSimulation
from treg_med.errors import ConfigError, FormatError, NumericsError, ResourceError
from treg_med.operators import SamplingMask
from treg_med.words.scan_words import ScanWords

__all__ = ["checked_target", "chosen_slices", "simulate_scan"]


@dataclass(frozen=True)
class _Plan:
    """Everything the file needs besides the slices themselves."""

    simulation: KspaceSimulation
    mask: SamplingMask
    peak: float
    geometry: Geometry
    words: ScanWords
    operation: dict[str, Any]


def simulate_scan(
    source: str | os.PathLike[str] | Tensor | npt.NDArray[Any],
    out: str | os.PathLike[str],
    *,
    acceleration: float = 4.0,
    mask: str = "random",
    coils: int = 1,
    noise: float = 0.01,
    seed: int = 0,
    slices: slice | Sequence[int] | None = None,
    phase: str = "smooth",
    slice_axis: int | None = None,
    volume: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Simulate an undersampled scan of a magnitude volume and write it as raw k-space HDF5.

    ``y_c = M (F S_c x + n_c)``; see `KspaceSimulation`. The file holds k-space, mask, sensitivity maps
    (several coils), the complex image as ``target``, the noise level, geometry, whitelisted words and what
    was done. It appears complete or not at all.

    Parameters
    ----------
    source
        Path of a NIfTI file, or an array (slice, H, W) or (H, W) of magnitudes in display orientation.
    out
        File to write, in an existing folder.
    acceleration, mask, coils, noise, seed, phase
        As in `KspaceSimulation`; ``noise`` is relative to the maximum of the volume.
    slices
        Which slices to write (default all): a ``slice`` or evenly spaced indices.
    slice_axis, volume
        As in `NiftiReader`.
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
    simulation = KspaceSimulation(acceleration, mask, coils, noise, seed, phase)
    final = checked_target(out)
    with StagedFiles(overwrite=overwrite) as staged:
        temporary = staged.path(final)
        if isinstance(source, Tensor | np.ndarray):
            plan, images = _plan_of_array(source, simulation)
        else:
            plan, images = _plan_of_nifti(source, simulation, slice_axis, volume)
        chosen = chosen_slices(slices, plan.geometry.shape[2])
        with writing(f"writing {final.name!r}"):
            _write_file(temporary, plan, chosen, images)
        staged.commit()
    return final


def checked_target(out: str | os.PathLike[str]) -> Path:
    """Return the path of a file that can be written.

    Raises
    ------
    ResourceError, ConfigError
        For a folder that is missing or not writable, and an unsafe name.
    """
    path = Path(os.fspath(out))
    folder = check_writable_folder(path.parent)
    if path.is_dir():
        raise ResourceError(
            f"expected a file to write, got the folder {str(path)!r}; add a file name such as scan.h5"
        )
    return folder / safe_name(path.name)


def _plan_of_array(
    source: Tensor | npt.NDArray[Any], simulation: KspaceSimulation
) -> tuple[_Plan, Callable[[int], Tensor]]:
    images = torch.as_tensor(source).detach().cpu()
    if images.is_complex() or images.dtype == torch.bool or images.ndim not in (2, 3) or 0 in images.shape:
        raise FormatError(
            f"expected real magnitudes (slice, H, W) or (H, W), got {images.dtype} {tuple(images.shape)}; "
            "pass image.abs()"
        )
    images = images.to(torch.float32).reshape(-1, *images.shape[-2:])
    if not bool(torch.isfinite(images).all()):
        raise NumericsError("expected finite magnitudes, got NaN or Inf; replace them, for example by 0")
    peak = float(images.max())
    if peak <= 0:
        raise NumericsError(f"expected magnitudes with something in them, got a maximum of {peak:g}")
    shape = (images.shape[1], images.shape[2])
    pattern = simulation.make_mask(shape)
    geometry = unknown_geometry((*shape, images.shape[0]))
    return _Plan(
        simulation, pattern, peak, geometry, ScanWords("MRI"), simulation.describe(pattern)
    ), images.__getitem__


def _plan_of_nifti(
    source: str | os.PathLike[str], simulation: KspaceSimulation, slice_axis: int | None, volume: int | None
) -> tuple[_Plan, Callable[[int], Tensor]]:
    file = check_readable_file(source)
    content = FileContent.of(file)
    if content.keys is not None or not looks_like_nifti(content.head):
        raise FormatError(
            f"expected a NIfTI magnitude volume to simulate from, got {file.name!r} of another format; "
            "convert it to NIfTI, or pass an array"
        )
    reader = NiftiReader(file, slice_axis=slice_axis, volume=volume, **simulation.options())
    plan = _Plan(
        simulation,
        reader.sampling,
        reader.peak,
        reader.geometry,
        reader.header.words,
        dict(reader.header.operations[0]),
    )
    return plan, reader.magnitude


def chosen_slices(slices: slice | Sequence[int] | None, count: int) -> list[int]:
    """Return the slice numbers of a choice; None chooses all.

    Raises
    ------
    ConfigError
        If one does not exist, or none is chosen.
    """
    if slices is None:
        return list(range(count))
    chosen = list(range(count))[slices] if isinstance(slices, slice) else [int(i) for i in slices]
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise ConfigError(
            f"expected slices within 0..{count - 1}, got {slices}; the volume has {count} slices"
        )
    return chosen


def _write_file(path: Path, plan: _Plan, chosen: list[int], images: Callable[[int], Tensor]) -> None:
    geometry = slices_geometry(plan.geometry, chosen)
    height, width = geometry.shape[:2]
    shape = (len(chosen), plan.simulation.coils, height, width)
    stored = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    with h5py.File(path, "x") as file:
        kspace = file.create_dataset("kspace", shape, "complex64", chunks=(1, 1, height, width), **stored)
        target = file.create_dataset(
            "target", (len(chosen), height, width), "complex64", chunks=(1, height, width), **stored
        )
        file.create_dataset("mask", data=plan.mask.mask.to(torch.uint8).numpy(), **stored)
        kspace.attrs["axes"] = "slice,coil,ky,kx"
        maps = None
        for position, index in enumerate(chosen):
            result = plan.simulation.slice(images(index), index, plan.mask, plan.peak)
            kspace[position] = result.kspace.numpy()
            target[position] = result.target.numpy()
            maps = result.maps
        if maps is not None:
            file.create_dataset("sensitivity_maps", data=maps.numpy(), **stored)
        _write_attributes(file, plan, geometry)


def _write_attributes(file: h5py.File, plan: _Plan, geometry: Geometry) -> None:
    words = {f.name: getattr(plan.words, f.name) for f in fields(plan.words)}
    noise_std = plan.simulation.noise * plan.peak
    file.attrs.update(
        {
            "layout": LAYOUT,
            "layout_version": LAYOUT_VERSION,
            "notice": RESEARCH_ONLY,
            "simulated": True,
            "noise_std": noise_std,
            "operations": json.dumps([plan.operation | {"noise_std": noise_std}], allow_nan=False),
            "display_rot90": geometry.display_rot90,
            "display_flip": geometry.display_flip,
            **{name: word for name, word in words.items() if word is not None},
        }
    )
    if not geometry.known and np.allclose(geometry.spacing_mm, 1.0):
        return
    file.attrs["affine"] = geometry.affine
    file.attrs["storage"] = np.array(geometry.storage, dtype=np.int8)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        file.attrs[name] = getattr(geometry, name)

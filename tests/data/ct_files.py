"""Small CT files of discs, whose projections are known exactly: p(s) = 2 mu sqrt(r^2 - (s - s0)^2)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

#: (x, y, radius, attenuation) in mm and 1/mm; not symmetric, so that every flip shows.
DISCS = ((0.0, 0.0, 90.0, 0.020), (40.0, 25.0, 15.0, 0.010), (-50.0, 10.0, 10.0, -0.015))
LODOPAB_ANGLES = (np.arange(1000) + 0.5) * np.pi / 1000


def disc_image(shape: tuple[int, int], pixel: float, discs: tuple[tuple[float, ...], ...] = DISCS) -> np.ndarray:
    """Return the image (H, W): row 0 at the top, x to the right, y up."""
    y, x = np.meshgrid(
        ((shape[0] - 1) / 2 - np.arange(shape[0])) * pixel,
        (np.arange(shape[1]) - (shape[1] - 1) / 2) * pixel,
        indexing="ij",
    )
    return sum(mu * ((x - x0) ** 2 + (y - y0) ** 2 <= r**2) for x0, y0, r, mu in discs).astype(np.float32)


def parallel_sinogram(
    angles: np.ndarray,
    bins: int,
    bin_size: float,
    centre: float | None = None,
    discs: tuple[tuple[float, ...], ...] = DISCS,
) -> np.ndarray:
    """Return (views, bins) line integrals along s = x cos b + y sin b."""
    s = (np.arange(bins) - ((bins - 1) / 2 if centre is None else centre)) * bin_size
    total = np.zeros((len(angles), bins))
    for x0, y0, r, mu in discs:
        distance = s[None] - (x0 * np.cos(angles) + y0 * np.sin(angles))[:, None]
        total += 2 * mu * np.sqrt(np.clip(r**2 - distance**2, 0, None))
    return total


def with_photons(sinogram: np.ndarray, photons: float, seed: int = 0) -> np.ndarray:
    """Return counts."""
    return np.random.default_rng(seed).poisson(photons * np.exp(-sinogram)).astype(np.float64)


def write_lodopab(folder: Path, count: int = 2, photons: float = 4096.0) -> tuple[Path, Path]:
    """Write observations and ground truth as the published generator does, in its own convention of axes."""
    mu_max, side = 3071 * (20 - 0.02) / 1000 + 20, 362
    first = (np.arange(side) - (side - 1) / 2) * 0.26 / side
    x, y = np.meshgrid(first, first, indexing="ij")
    s = (np.arange(513) - 256) * 2 * math.hypot(0.13, 0.13) / 513
    images, data = np.zeros((count, side, side), np.float32), np.zeros((count, 1000, 513), np.float32)
    for n in range(count):
        rays = np.zeros((1000, 513))
        for x0, y0, r, mu in ((a / 1000 + 0.005 * n, b / 1000, c / 1000, 1000 * d) for a, b, c, d in DISCS):
            images[n] += mu / mu_max * ((x - x0) ** 2 + (y - y0) ** 2 <= r**2)
            distance = s[None] - (x0 * np.cos(LODOPAB_ANGLES) + y0 * np.sin(LODOPAB_ANGLES))[:, None]
            rays += 2 * mu * np.sqrt(np.clip(r**2 - distance**2, 0, None))
        counts = np.maximum(with_photons(rays, photons, n), 0.1)
        data[n] = -np.log(counts / photons) / mu_max
    for name, values in (("observation", data), ("truth", images)):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file.create_dataset("data", data=values, compression="gzip", compression_opts=1)
    return folder / "observation.hdf5", folder / "truth.hdf5"


def write_exchange(
    path: Path,
    *,
    views: int = 120,
    bins: int = 128,
    rows: int = 2,
    centre: float = 60.0,
    photons: float = 20000.0,
    gain: float = 2.0,
    units: str | None = "degrees",
    leave_out: tuple[str, ...] = (),
) -> Path:
    """Write a Data Exchange file of a small object in bins, with dark signal, uneven flat field and gain."""
    angles = np.arange(views) * np.pi / views
    discs = ((3.0, 5.0, 30.0, 0.02), (10.0, -8.0, 6.0, 0.03))
    sinogram = parallel_sinogram(angles, bins, 1.0, centre, discs)
    generator = np.random.default_rng(1)
    beam = photons * (1 + 0.2 * np.sin(np.arange(bins) / 9.0))
    dark = 100.0

    def measured(expected: np.ndarray) -> np.ndarray:
        return (gain * generator.poisson(expected) + dark + generator.normal(0, 1.5, expected.shape)).astype(np.float32)

    with h5py.File(path, "w") as file:
        shape = (views, rows, bins)
        exposed = np.broadcast_to((beam * np.exp(-sinogram))[:, None], shape)
        fields = {
            "data": measured(exposed),
            "data_white": measured(np.broadcast_to(beam, (10, rows, bins))),
            "data_dark": measured(np.zeros((10, rows, bins))),
            "theta": np.rad2deg(angles) if units != "radians" else angles,
        }
        for name, values in fields.items():
            if name not in leave_out:
                file[f"exchange/{name}"] = values
        if units is not None and "theta" not in leave_out:
            file["exchange/theta"].attrs["units"] = units
    return path


def write_sinogram(
    path: Path,
    *,
    kind: str = "counts",
    slices: int | None = 2,
    views: int = 90,
    bins: int = 95,
    shape: tuple[int, int] = (64, 60),
    pixel: float = 3.5,
    photons: float = 1e5,
    changes: dict[str, Any] | None = None,
    datasets: dict[str, Any] | None = None,
    angles: np.ndarray | None = None,
    angle_units: str | None = "rad",
) -> Path:
    """Write the project's own layout; ``changes`` replaces attributes, None leaves one out."""
    beta = np.arange(views) * np.pi / views if angles is None else angles
    sinogram = parallel_sinogram(beta if angle_units != "deg" else np.deg2rad(beta), bins, pixel)
    counts = with_photons(sinogram, photons)
    data = counts if kind == "counts" else -np.log(np.maximum(counts, 0.1) / photons)
    attributes: dict[str, Any] = {
        "geometry": "parallel",
        "units": "1/mm",
        "image_shape": np.array(shape),
        "pixel_size": pixel,
        "bin_size": pixel,
        "mu_water": 0.0192,
    }
    with h5py.File(path, "w") as file:
        file[kind] = data if slices is None else np.stack([data] * slices)
        if kind == "counts":
            file["i0"] = photons
        file["angles"] = beta
        if angle_units is not None:
            file["angles"].attrs["units"] = angle_units
        for name, value in (attributes | (changes or {})).items():
            if value is not None:
                file.attrs[name] = value
        for name, value in (datasets or {}).items():
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value
    return path


def write_htc(path: Path, *, views: int = 121, bins: int = 80, side: int = 64, reference: bool = True) -> Path:
    """Write a scan in the layout of HTC2022: a disc off the axis, exact fan-beam projections, a repeated last view."""
    origin, detector, pitch = 410.66, 553.74, 1.4
    degrees = np.linspace(0, 360, views)
    pixel = pitch * origin / detector * bins / 80 * 64 / 512
    beta = np.deg2rad(degrees)[:, None]
    u = ((np.arange(bins) - (bins - 1) / 2) * pitch)[None]
    gamma = np.arctan(u / detector)
    theta, s = beta - gamma, origin * np.sin(gamma)
    discs = ((4.0, 6.0, 20.0, 0.04), (10.0, 2.0, 4.0, -0.03))
    rays = np.zeros((views, bins))
    for x0, y0, r, mu in discs:
        distance = s - (x0 * np.cos(theta) + y0 * np.sin(theta))
        rays += 2 * mu * np.sqrt(np.clip(r**2 - distance**2, 0, None))
    counts = with_photons(rays, 6e4)
    with h5py.File(path, "w") as file:
        file["sinogram"] = (-np.log(counts / 6e4)).astype(np.float32)
        file["angles_deg"] = degrees
        if reference:
            image = disc_image((side, side), pixel * 512 / side, discs)
            file["reference_fbp"] = (image * pixel).astype(np.float16)
            file["reference_segmentation"] = (image > 0.02).astype(np.uint8)
        file.attrs.update(
            {
                "distanceSourceOrigin": origin,
                "distanceSourceDetector": detector,
                "pixelSizePost": pitch,
                "effectivePixelSizePost": pixel,
                "phantom": "CANARY",
            }
        )
    return path


def write_hounsfield(
    path: Path,
    *,
    shape: tuple[int, int, int] = (48, 40, 3),
    spacing: tuple[float, float, float] = (5.0, 5.0, 8.0),
    padding: float | None = None,
    dtype: str = "int16",
) -> np.ndarray:
    """Write a NIfTI volume of water with lung and bone in air, RAS; return the stored HU."""
    discs = ((0.0, 0.0, 85.0, 1040.0), (30.0, 20.0, 25.0, -800.0), (-40.0, 10.0, 12.0, 600.0))
    image = disc_image((shape[1], shape[0]), spacing[0], discs) - 1000
    if padding is not None:
        image[:2] = padding
    # Stored (x, y, z): x to the patient's right is column 0 of an upright image.
    volume = np.repeat(image[::-1, ::-1].T[:, :, None], shape[2], axis=2)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-100, -90, 30)
    stored = volume.astype(np.int16).astype(np.uint16) if dtype == "uint16" else volume.astype(dtype)
    written = nib.Nifti1Image(stored, affine)
    written.set_sform(affine, code=1)
    written.to_filename(path)
    return image

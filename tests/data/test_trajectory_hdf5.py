"""Radial k-space in a file, with coils, with and without maps and noise level."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from treg_med import reconstruct
from treg_med.data import open_scan, validate_source
from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import CoilMaps, NonuniformFFT, birdcage_maps, complex_gaussian_noise

SIZE = 48
NOISE = 0.05


def _truth() -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    body = 0.8 * ((rows / 0.8).square() + (columns / 0.65).square() < 1)
    return torch.polar(body + 0.2 * ((rows.square() + (columns - 0.2).square()) < 0.05), 0.5 * rows)


def _spokes(spokes: int = 60, samples: int = 96) -> torch.Tensor:
    along = (torch.arange(samples) - samples // 2) / samples
    angles = torch.arange(spokes) * math.pi / spokes
    return torch.stack([torch.outer(angles.sin(), along), torch.outer(angles.cos(), along)], -1)


def write(path: Path, *, maps: bool = True, **changes: Any) -> Path:
    points, coils = _spokes(), birdcage_maps(4, (SIZE, SIZE))
    operator = NonuniformFFT((SIZE, SIZE), points.reshape(-1, 2)) @ CoilMaps(coils)
    clean = operator(_truth())
    noisy = clean + complex_gaussian_noise(tuple(clean.shape), NOISE, torch.Generator().manual_seed(0))
    content = {"kspace": noisy.reshape(1, 4, *points.shape[:-1]).numpy(), "trajectory": points.numpy()}
    content |= {"sensitivity_maps": coils.numpy()} if maps else {}
    content |= {"target": _truth().abs().numpy()[None]}
    content |= changes
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if name != "image_shape" and values is not None:
                file[name] = values
        file.attrs["image_shape"] = content.get("image_shape", (SIZE, SIZE))
    return path


@pytest.mark.parametrize("maps", [True, False])
def test_keeps_what_a_reader_promises(tmp_path: Path, maps: bool) -> None:
    with open_scan(write(tmp_path / "radial.h5", maps=maps)) as scan:
        validate_source(scan)
        assert scan.header.coils == 4 and scan.header.format.startswith("k-space along a trajectory")
        facts = scan[0].operator.facts()
    assert facts["coils"] == 4 and facts["samples"] == 60 * 96


@pytest.mark.parametrize("maps", [True, False])
def test_a_radial_scan_is_reconstructed(tmp_path: Path, maps: bool) -> None:
    """Neither its noise level nor, in the second case, its coils are known."""
    m = open_scan(write(tmp_path / "radial.h5", maps=maps))[0]
    rec = reconstruct(m, solver="tv", device="cpu")
    assert rec.settings["noise_std"] == pytest.approx(NOISE, rel=0.1 if maps else 1.0)
    error = (rec.image.abs() - _truth().abs()).square().mean().sqrt()
    assert -20 * math.log10(float(error)) > (40 if maps else 25)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"trajectory": 2 * np.pi * _spokes().numpy()}, GeometryError, "cycles per pixel.*radians"),
        ({"trajectory": 48 * _spokes().numpy()}, GeometryError, "cycles per pixel.*steps of the grid"),
        ({"trajectory": _spokes(50).numpy()}, GeometryError, "beside this trajectory"),
        ({"trajectory": _spokes()[..., :1].numpy()}, GeometryError, r"\(sample, 2\)"),
        ({"image_shape": (0, 5, 1)}, ConfigError, "image_size=N"),
        ({"target": np.zeros((4, 5), np.float32)}, GeometryError, "expected target"),
        ({"sensitivity_maps": np.zeros((4, 5, 5), np.complex64)}, GeometryError, "expected sensitivity_maps"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        open_scan(write(tmp_path / "radial.h5", **changes))

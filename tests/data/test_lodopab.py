"""LoDoPaB-CT: constants, axes and noise of the published generator, checked against exact projections of discs."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.data.ct_files import write_lodopab
from treg_med.data import open_scan
from treg_med.errors import ConfigError, FormatError
from treg_med.operators.filtered_backprojection import filtered_backprojection


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_lodopab(tmp_path_factory.mktemp("lodopab"))


def test_axes_and_scale_are_those_of_the_generator(files: tuple[Path, Path]) -> None:
    with open_scan(files[0], truth=files[1]) as scan:
        m = scan[1]
        assert scan.header.format == "LoDoPaB-CT HDF5"
        assert scan.header.text == "Axial CT slice of the chest"
        assert (scan.header.views, scan.header.beam) == (1000, "parallel")
    assert m.target is not None
    assert m.mu_water == pytest.approx(0.020)
    image = filtered_backprojection(m.operator, m.y, "hann")
    # A flip, a transposition or half a bin would show in the small discs; the noise is white and below 5 %.
    smooth = torch.nn.functional.avg_pool2d(image[None, None], 5, 1, 2)[0, 0]
    error = (smooth - m.target)[torch.nn.functional.max_pool2d(_edges(m.target), 9, 1, 4)[0] == 0]
    assert float(error.abs().mean()) < 0.0004
    assert abs(float(error.mean())) < 0.0001


def _edges(image: torch.Tensor) -> torch.Tensor:
    return ((image[None] - torch.nn.functional.avg_pool2d(image[None], 3, 1, 1)).abs() > 1e-6).float()


def test_weights_are_the_counts(files: tuple[Path, Path]) -> None:
    with open_scan(files[0], truth=files[1]) as scan:
        m = scan[0]
    assert m.weights is not None
    assert m.noise_std is not None
    assert float(m.weights.mean()) == pytest.approx(1.0, rel=1e-4)
    counts = m.weights / m.noise_std**2
    assert float(counts.max()) == pytest.approx(4096, rel=0.08)
    residual = (m.operator(m.target) - m.y) * m.weights.sqrt() / m.noise_std
    assert float(residual.square().mean().sqrt()) == pytest.approx(1.0, abs=0.1)
    assert m.provenance["noise_std"] == "from the counts"
    assert m.provenance["photons"] == 4096.0


def test_starved_rays_are_counted(tmp_path: Path) -> None:
    observation, _ = write_lodopab(tmp_path, 1, photons=30.0)
    with open_scan(observation, photons=30.0) as scan:
        m = scan[0]
    assert any("photon starvation" in w for w in m.warnings)


def test_the_image_is_shown_transposed(files: tuple[Path, Path]) -> None:
    with open_scan(files[0], truth=files[1], views=10) as scan:
        m = scan[0]
    assert m.geometry is not None
    assert m.target is not None
    assert torch.equal(m.geometry.to_display(m.target), m.target.T)


def test_fewer_views(files: tuple[Path, Path]) -> None:
    with open_scan(files[0], views=50) as scan:
        m = scan[0]
        assert scan.header.operations[-1]["views"] == 50
    assert tuple(m.y.shape) == (50, 513)
    with open_scan(files[0], arc=60.0, start=30.0) as scan:
        limited = scan[0]
    assert limited.operator.views == 333
    assert "missing wedge of 120" in limited.provenance["missing"]


def test_ground_truth_alone_is_simulated(files: tuple[Path, Path]) -> None:
    with open_scan(files[1], views=20, photons=5e4) as scan:
        m = scan[0]
        assert scan.header.simulated
        assert any("inverse crime" in w for w in scan.header.warnings)
    assert m.target is not None
    assert float(m.target.max()) == pytest.approx(0.030, rel=1e-3)


def test_files_that_do_not_belong_together_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data"] = np.zeros((3, 362, 362), np.float32)
    with pytest.raises(FormatError, match="3"):
        open_scan(files[0], truth=tmp_path / "other.hdf5")
    with pytest.raises(FormatError, match="ground truth"):
        open_scan(files[0], truth=files[0])
    with pytest.raises(ConfigError, match="photons"):
        open_scan(files[0], photons=0)


def test_an_array_called_data_of_another_shape_is_no_lodopab(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros((2, 1000, 512), np.float32)
    with pytest.raises(FormatError, match="data"):
        open_scan(tmp_path / "a.h5")

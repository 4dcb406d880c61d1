"""References of scans, and volumes of other programs on the grid of a scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from treg_med.data import open_scan, simulate_scan
from treg_med.data.nifti import NiftiVolume
from treg_med.data.orientation import to_volume
from treg_med.data.phantoms import phantom_volume
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.evaluation.references import read_reference
from treg_med.evaluation.slice_grid import SliceGrid

AFFINE = np.array([[-0.9, 0, 0, 20], [0, 0.1, 2.0, -10], [0, 1.1, -0.2, 5], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coronal stack, oblique, of unequal sides."""
    values = 100 * phantom_volume((24, 20), 6).movedim(0, -1).numpy()
    image = nib.Nifti1Image(values.astype(np.float32), AFFINE)
    image.set_sform(AFFINE, code=1)
    path = tmp_path_factory.mktemp("volume") / "brain_T2w.nii.gz"
    nib.save(image, path)
    return path


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4, 5), (1, 3, 5), (4,)])
def test_the_reference_of_a_simulated_scan_is_that_of_its_measurements(volume: Path, indices: tuple[int, ...]) -> None:
    with open_scan(volume, coils=2) as scan:
        reference = read_reference(scan, indices)
        assert reference.unit == "magnitude"
        for image, index in zip(reference.images, indices, strict=True):
            target = scan[index].target
            assert target is not None
            np.testing.assert_allclose(image, target.abs().numpy(), rtol=1e-5, atol=1e-4)


def test_the_reference_in_a_file_of_kspace(tmp_path: Path) -> None:
    path = simulate_scan(phantom_volume((16, 16), 3), tmp_path / "scan.h5")
    with open_scan(path) as scan:
        reference = read_reference(scan, (0, 2))
        target = scan[2].target
    assert target is not None
    np.testing.assert_allclose(reference.images[1], target.abs().numpy(), rtol=1e-6)


def test_ct_is_compared_in_hounsfield_units(tmp_path: Path) -> None:
    values = np.full((24, 24, 3), -1000.0)
    values[6:18, 6:18] = 40
    with open_scan(save(tmp_path / "ct.nii.gz", values, np.diag([1, 1, 3, 1.0])), views=12) as scan:
        reference = read_reference(scan, (1,))
    assert reference.unit == "HU"
    assert set(np.round(reference.images.ravel())) == {-1000, 40}


@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4, 5), (1, 3, 5)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2)])
def test_a_volume_in_any_order_of_axes_is_brought_to_the_slices(
    volume: Path, indices: tuple[int, ...], order: tuple[int, ...], flipped: tuple[int, ...]
) -> None:
    stored = NiftiVolume.read(volume)
    values, affine = stored.values.transpose(order), stored.affine[:, [*order, 3]].copy()
    for axis in flipped:
        values = np.flip(values, axis)
        affine[:, 3] += affine[:, axis] * (values.shape[axis] - 1)
        affine[:, axis] *= -1
    moved = NiftiVolume(np.ascontiguousarray(values), affine, 1, 1, 2)
    with open_scan(volume) as scan:
        reference = read_reference(scan, indices)
    np.testing.assert_array_equal(reference.grid.slices_of(moved, "moved"), reference.images)


def test_a_target_beside_the_scan_may_hold_all_slices_or_the_reconstructed_ones(volume: Path, tmp_path: Path) -> None:
    with open_scan(volume) as scan:
        own = read_reference(scan, (1, 3, 5))
        whole = read_reference(scan, (1, 3, 5), volume)
        part, affine = to_volume(np.moveaxis(own.images, 0, -1), own.grid.part)
        few = read_reference(scan, (1, 3, 5), save(tmp_path / "few.nii.gz", part, affine))
    np.testing.assert_array_equal(whole.images, own.images)
    np.testing.assert_array_equal(few.images, own.images)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (np.diag([1, 1, 2, 1.0]), "voxels of"),
        (np.array([[1, 0, 0, 0.4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "part of a voxel"),
        (np.array([[1, 0.2, 0, 0], [-0.2, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "turned"),
        (np.array([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "to cover the reconstructed slices"),
    ],
)
def test_another_grid_is_refused_and_the_difference_named(volume: Path, change: np.ndarray, said: str) -> None:
    stored = NiftiVolume.read(volume)
    other = NiftiVolume(stored.values, stored.affine @ change, 1, 1, 2)
    with open_scan(volume) as scan:
        grid = SliceGrid(scan.geometry, (0, 1, 2))
    with pytest.raises(GeometryError, match=said):
        grid.slices_of(other, "other")


def test_without_a_position_shapes_have_to_agree(tmp_path: Path) -> None:
    images = phantom_volume((16, 12), 4)
    path = simulate_scan(images, tmp_path / "scan.h5")
    with open_scan(path) as scan:
        reference = read_reference(scan, (1, 3))
        whole = read_reference(scan, (0, 1, 2, 3))
    for known in (whole, reference):
        stored, affine = to_volume(np.moveaxis(known.images, 0, -1), known.grid.part)
        found = reference.grid.slices_of(NiftiVolume(stored, affine, 0, 0, 2), "volume")
        np.testing.assert_array_equal(found, reference.images)
    wrong = NiftiVolume(np.zeros((12, 16, 3), np.float32), np.eye(4), 0, 0, 2)
    with pytest.raises(GeometryError, match="of shape"):
        reference.grid.slices_of(wrong, "volume")


def test_a_scan_without_a_reference(tmp_path: Path) -> None:
    import h5py

    path = simulate_scan(phantom_volume((16, 16), 1), tmp_path / "scan.h5")
    with h5py.File(path, "r+") as file:
        del file["target"]
    with open_scan(path) as scan, pytest.raises(ConfigError, match="holds no reference"):
        read_reference(scan, (0,))


def test_a_volume_with_nan_is_read_where_it_is_asked_for(volume: Path, tmp_path: Path) -> None:
    values = NiftiVolume.read(volume).values.copy()
    values[0, 0, 0], values[1, 0, 0] = np.nan, np.inf
    path = save(tmp_path / "nan.nii.gz", values, AFFINE)
    with pytest.raises(NumericsError, match="2 NaN or Inf"):
        NiftiVolume.read(path)
    np.testing.assert_array_equal(NiftiVolume.read(path, finite=False).values, values)
    with open_scan(volume) as scan, pytest.raises(NumericsError):
        read_reference(scan, (0,), path)

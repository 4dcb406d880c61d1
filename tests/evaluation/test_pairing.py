"""Two files on one grid: turned where the headers say how, refused where they differ or the images are mirrored."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from treg_med.data.phantoms import phantom_volume, write_nifti
from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError
from treg_med.evaluation.pairing import mirrored_axes, paired
from treg_med.evaluation.protocols import evaluate

TARGET = phantom_volume((40, 34), 5)
NOISE = 0.05 * torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(0))
PREDICTION = (TARGET + NOISE).clamp(min=0)
AXES = [
    "".join(letters) for order in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*order)
]


def _files(folder: Path, prediction: torch.Tensor = PREDICTION, **header: object) -> tuple[Path, Path]:
    write_nifti(folder / "target.nii.gz", TARGET)
    write_nifti(folder / "prediction.nii.gz", prediction, **header)  # type: ignore[arg-type]
    return folder / "prediction.nii.gz", folder / "target.nii.gz"


def _rewrite(path: Path, affine: np.ndarray, values: np.ndarray | None = None) -> None:
    image = nib.load(path)
    values = image.get_fdata(dtype=np.float32) if values is None else values
    image = nib.Nifti1Image(np.array(values, dtype=np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


@pytest.mark.parametrize("axes", AXES)
def test_a_prediction_stored_another_way_is_turned(tmp_path: Path, axes: str) -> None:
    pair = paired(*_files(tmp_path, axes=axes))
    assert np.allclose(pair.target, TARGET, atol=1e-6)
    assert np.allclose(pair.prediction, PREDICTION, atol=1e-6)
    assert pair.notes == (() if axes == "RAS" else (f"prediction turned from {axes} to the target's RAS",))
    assert (pair.known, pair.unit, pair.slice_axis) == (True, "magnitude", 2)
    assert pair.spacing_mm == pytest.approx((1.1, 0.9, 3.0))


def test_a_pair_can_be_scored_along_any_axis(tmp_path: Path) -> None:
    pair = paired(*_files(tmp_path), slice_axis=0)
    assert pair.target.shape == (34, 5, 40)
    assert pair.slice_axis == 0
    whole = paired(*_files(tmp_path))
    assert evaluate(whole.prediction, whole.target)[0].values == pytest.approx(
        evaluate(PREDICTION, TARGET)[0].values, abs=1e-5
    )
    with pytest.raises(ConfigError, match="slice_axis"):
        paired(*_files(tmp_path), slice_axis=3)


def test_ct_is_known_by_its_values(tmp_path: Path) -> None:
    write_nifti(tmp_path / "t.nii", 1000 * TARGET - 1000)
    assert paired(tmp_path / "t.nii", tmp_path / "t.nii").unit == "HU"


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"shape \(34, 40, 5\), that of the target, got \(34, 40, 4\); crop"):
        paired(*_files(tmp_path, PREDICTION[1:]))
    with pytest.raises(GeometryError, match="got .* after turning it from LPS to RAS"):
        paired(*_files(tmp_path, PREDICTION[:, 1:], axes="LPS"))


def test_other_voxels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="voxels of 0.9 x 1.1 x 3 mm, those of the target, got 0.9 x 1.1 x 3.2 mm"):
        paired(*_files(tmp_path, spacing_mm=(0.9, 1.1, 3.2)))


def test_another_place_is_refused_and_rounding_is_not(tmp_path: Path) -> None:
    prediction, target = _files(tmp_path)
    affine = nib.load(target).affine
    moved = affine.copy()
    moved[:3, 3] += (0.0, 4.0, 0.0)
    _rewrite(prediction, moved)
    with pytest.raises(GeometryError, match=r"4 mm apart \(centre shifted by 0 x 4 x 0 mm .* rotated by 0 degrees"):
        paired(prediction, target)
    moved[:3, 3] = affine[:3, 3] + 0.04
    _rewrite(prediction, moved)
    assert paired(prediction, target).notes == ()


def test_a_rotation_is_named(tmp_path: Path) -> None:
    prediction, target = _files(tmp_path)
    affine = nib.load(target).affine
    c, s = np.cos(np.deg2rad(5)), np.sin(np.deg2rad(5))
    _rewrite(prediction, np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ affine)
    with pytest.raises(GeometryError, match="rotated by 5 degrees"):
        paired(prediction, target)


@pytest.mark.parametrize(
    ("flipped", "name"),
    [
        ((2,), r"axis 0 \(left-right\)"),
        ((1,), r"axis 1 \(front-back\)"),
        ((1, 2), r"axis 0 \(left-right\) and axis 1 \(front-back\)"),
        ((0,), r"axis 2 \(head-feet\)"),
    ],
)
def test_mirrored_images_under_equal_headers_are_refused(tmp_path: Path, flipped: tuple[int, ...], name: str) -> None:
    with pytest.raises(GeometryError, match=f"is mirrored against 'target.nii.gz' along {name}: .*flip it"):
        paired(*_files(tmp_path, PREDICTION.flip(flipped)))


def test_files_without_a_place_are_compared_as_they_are(tmp_path: Path) -> None:
    unplaced = {"sform_code": 0, "qform_code": 0}
    prediction, target = _files(tmp_path, **unplaced)
    pair = paired(prediction, target)
    assert not pair.known
    assert pair.notes == ("no place in the patient in prediction.nii.gz: axes are taken to be the same",)
    assert np.allclose(pair.prediction, PREDICTION, atol=1e-6)
    write_nifti(target, TARGET, **unplaced)  # type: ignore[arg-type]
    assert paired(prediction, target).notes[0].startswith("no place in the patient in prediction.nii.gz and target")
    write_nifti(prediction, PREDICTION.flip(2), **unplaced)  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match=r"axis 0 \(left-right of the image\)"):
        paired(prediction, target)
    write_nifti(prediction, PREDICTION.flip(1), **unplaced)  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match=r"axis 1 \(up-down of the image\)"):
        paired(prediction, target)


def test_a_bad_or_symmetric_prediction_is_not_called_mirrored() -> None:
    target = TARGET.numpy()
    draw = np.random.default_rng(1)
    assert mirrored_axes(draw.standard_normal(target.shape).astype(np.float32), target) == ()
    for strength in (0.1, 0.5, 2.0):
        noisy = target + strength * draw.standard_normal(target.shape).astype(np.float32)
        assert mirrored_axes(noisy, target) == ()
    symmetric = target + target[:, :, ::-1]
    assert mirrored_axes(target, symmetric) == ()
    assert mirrored_axes(np.zeros_like(target), target) == ()
    assert mirrored_axes(-target, target) == ()
    assert mirrored_axes(target[:, ::-1], target) == (1,)


def test_mirroring_is_seen_in_volumes_larger_than_the_coarse_grid() -> None:
    rows, columns = np.mgrid[0:1:211j, 0:1:130j]
    volume = np.stack([np.exp(-20 * ((rows - 0.4) ** 2 + (columns - 0.45) ** 2)), rows * columns]).astype(np.float32)
    assert mirrored_axes(volume[:, :, ::-1], volume) == (2,)
    assert mirrored_axes(volume, volume) == ()


@pytest.mark.shared
def test_a_real_head_is_seen_mirrored(shared: Path, tmp_path: Path) -> None:
    path = sorted((shared / "nifti").rglob("*.nii.gz"))[0]
    image = nib.load(path)
    values = image.get_fdata(dtype=np.float32)
    _rewrite_as(tmp_path / "same.nii.gz", image.affine, values)
    _rewrite_as(tmp_path / "flipped.nii.gz", image.affine, values[::-1])
    assert paired(tmp_path / "same.nii.gz", path).notes == ()
    with pytest.raises(GeometryError, match="is mirrored"):
        paired(tmp_path / "flipped.nii.gz", path)


def _rewrite_as(path: Path, affine: np.ndarray, values: np.ndarray) -> None:
    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def test_nan_is_counted_in_a_prediction_and_named_in_a_target(tmp_path: Path) -> None:
    spoiled = PREDICTION.clone()
    spoiled[3, 10, 10] = torch.nan
    prediction, target = _files(tmp_path, spoiled, axes="LPS")
    pair = paired(prediction, target)
    assert np.argwhere(np.isnan(pair.prediction)).tolist() == [[3, 10, 10]]
    assert pair.notes == ("prediction turned from LPS to the target's RAS",)
    assert evaluate(pair.prediction, pair.target, "volume")[0].nan_pixels == 1
    with pytest.raises(NumericsError, match="in slice 3 of 'prediction.nii.gz' "):
        paired(target, prediction)


def test_files_that_are_no_volumes_are_refused(tmp_path: Path) -> None:
    prediction, target = _files(tmp_path)
    prediction.write_bytes(prediction.read_bytes()[:200])
    with pytest.raises(FormatError):
        paired(prediction, target)

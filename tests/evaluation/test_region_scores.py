"""Masks and boxes of a scan as regions of its evaluated slices, and the rows they make."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest

from tests.evaluation.studies import brain, save
from treg_med.data import open_scan
from treg_med.data.phantoms import write_fastmri
from treg_med.data.records import Geometry
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.evaluation.datasets import ScanFile
from treg_med.evaluation.references import Reference, read_reference
from treg_med.evaluation.region_scores import Region, counted, no_region_note, read_regions, region_score
from treg_med.evaluation.regions import Box, region_metrics
from treg_med.evaluation.slice_grid import SliceGrid

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def file_of(path: Path, mask: Path | None = None, boxes: tuple[Box, ...] = ()) -> ScanFile:
    return ScanFile("brain", path, "p0", "p0", mask=mask, boxes=boxes)


def regions_of(file: ScanFile, indices: tuple[int, ...]) -> tuple[list[Region], Reference]:
    with open_scan(file.path) as scan:
        reference = read_reference(scan, indices)
        return read_regions(scan, file, reference.grid), reference


def test_a_mask_is_what_is_not_zero_in_the_evaluated_slices(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz", brain(0))
    labels = np.zeros((32, 32, 4))
    labels[4:6, 20:23, 1], labels[10, 12, 3], labels[8, 8, 2] = 1, -2, 0.5
    mask = save(tmp_path / "mask.nii.gz", labels)
    (region,), reference = regions_of(file_of(scan, mask), (1, 3))
    assert region.description == "mask"
    assert region.mask.shape == reference.images.shape
    assert region.mask.sum(axis=(1, 2)).tolist() == [6, 1]
    # In the voxels of the file, whatever way the images are turned.
    assert set(reference.images[region.mask]) == set(brain(0)[[4, 4, 4, 5, 5, 5], [20, 21, 22] * 2, 1]) | {
        brain(0)[10, 12, 3]
    }


def test_a_mask_may_be_stored_in_another_order_of_axes(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz", brain(0))
    labels = np.zeros((32, 32, 4))
    labels[4:6, 20:23, 1] = 1
    flipped = AFFINE @ np.array([[-1, 0, 0, 31], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    straight = save(tmp_path / "straight.nii.gz", labels)
    turned = save(tmp_path / "turned.nii.gz", labels[::-1].transpose(2, 0, 1), flipped[:, [2, 0, 1, 3]])
    (first,), _ = regions_of(file_of(scan, straight), (0, 1))
    (second,), _ = regions_of(file_of(scan, turned), (0, 1))
    assert np.array_equal(first.mask, second.mask)


def test_without_a_voxel_in_the_slices_there_is_no_region(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz", brain(0))
    labels = np.zeros((32, 32, 4))
    assert regions_of(file_of(scan, save(tmp_path / "empty.nii.gz", labels)), (0, 1))[0] == []
    labels[3, 3, 3] = 1
    assert regions_of(file_of(scan, save(tmp_path / "elsewhere.nii.gz", labels)), (0, 1))[0] == []


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz", brain(0))
    other = save(tmp_path / "other.nii.gz", np.ones((32, 32, 4)), np.diag([1.0, 1.0, 4.0, 1.0]))
    with pytest.raises(GeometryError, match="'other.nii.gz' on the grid of the scan"):
        regions_of(file_of(scan, other), (0, 1))
    broken = save(tmp_path / "broken.nii.gz", np.full((32, 32, 4), np.nan))
    with pytest.raises(NumericsError):
        regions_of(file_of(scan, broken), (0, 1))


@pytest.mark.parametrize("stored", [True, False])
def test_boxes_lie_on_the_centre_that_was_annotated_upside_down(tmp_path: Path, stored: bool) -> None:
    images = write_fastmri(tmp_path / "a.h5", recon=40, width=44, n_slices=3, store_target=stored).numpy()
    boxes = (Box("a", 1, 3, 5, 4, 10, "Mass"), Box("a", 2, 0, 0, 2, 2, "Edema; old"), Box("a", 2, 9, 9, 1, 1, "Mass"))
    found, reference = regions_of(file_of(tmp_path / "a.h5", boxes=boxes), (1, 2))
    assert [region.description for region in found] == ["box: Mass", "box: Edema, old"]
    # What the radiologists saw: the central 40 columns, flipped up/down.
    seen = images[:, :, 2:42][:, ::-1]
    expected = np.concatenate([seen[1, 5:15, 3:7].ravel(), seen[2, 9:10, 9:10].ravel()])
    assert np.allclose(np.sort(reference.images[found[0].mask]), np.sort(expected), atol=1e-4)
    assert found[0].mask[0, 25:35, 5:9].all() and found[0].mask[0].sum() == 40
    assert regions_of(file_of(tmp_path / "a.h5", boxes=boxes), (0,))[0] == []


def test_boxes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", n_slices=3)
    with pytest.raises(GeometryError, match="is this the right scan"):
        regions_of(file_of(tmp_path / "a.h5", boxes=(Box("a", 3, 0, 0, 2, 2, "Mass"),)), (0,))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["reconstruction_esc"]
        file["reconstruction_rss"] = np.ones((3, 60, 60), np.float32)
    with pytest.raises(GeometryError, match=r"shape \(3, 60, 60\)"):
        regions_of(file_of(tmp_path / "a.h5", boxes=(Box("a", 1, 0, 0, 2, 2, "Mass"),)), (0,))
    scan = save(tmp_path / "a.nii.gz", brain(0))
    with pytest.raises(ConfigError, match="scan of fastMRI"):
        regions_of(file_of(scan, boxes=(Box("a", 1, 0, 0, 2, 2, "Mass"),)), (0,))


def reference_of(images: np.ndarray, unit: Literal["magnitude", "HU"] = "magnitude") -> Reference:
    slices, rows, columns = images.shape
    return Reference(images, unit, SliceGrid(Geometry(shape=(rows, columns, slices)), tuple(range(slices))))


def test_the_row_of_a_region() -> None:
    draw = np.random.default_rng(0)
    target = draw.uniform(1, 9, (2, 24, 24)).astype(np.float32)
    prediction = (target + draw.normal(size=target.shape)).astype(np.float32)
    mask = np.zeros(target.shape, bool)
    mask[1, 8:14, 9:13] = True
    score = region_score(prediction, reference_of(target), Region("box: Mass", mask))
    assert (score.protocol, score.version, score.level, score.slice) == ("region", 1, "volume", None)
    assert (score.mask, score.nan_pixels, score.note, score.crop) == ("box: Mass", 0, None, None)
    assert score.data_range == target.max()
    errors = (prediction.astype(float) - target)[1, 8:14, 9:13]
    assert score.values["psnr_roi"] == pytest.approx(10 * math.log10(float(target.max()) ** 2 / (errors**2).mean()))
    everywhere = region_score(prediction, reference_of(target), Region("mask", np.ones_like(mask)))
    assert math.isnan(everywhere.values["cnr"]) and "cnr" in str(everywhere.note)


def test_hounsfield_units_have_one_window() -> None:
    target = np.full((1, 24, 24), -1000.0, np.float32)
    target[:, 4:20, 4:20] = 40
    target[:, 0, 0] = 3000
    mask = np.zeros(target.shape, bool)
    mask[0, 8:12, 8:12] = True
    score = region_score(target + 20 * mask, reference_of(target, "HU"), Region("mask", mask))
    assert score.data_range == 2000
    assert score.values["psnr_roi"] == pytest.approx(20 * math.log10(2000 / 20))
    assert score.values["nmse_roi"] == pytest.approx(20**2 / 1040**2)


def test_a_prediction_with_nan_is_counted_and_has_no_value() -> None:
    target = np.random.default_rng(0).uniform(1, 9, (1, 24, 24)).astype(np.float32)
    prediction = target.copy()
    prediction[0, 0, :3] = np.nan, np.inf, -np.inf
    mask = np.zeros(target.shape, bool)
    mask[0, 8:12, 8:12] = True
    score = region_score(prediction, reference_of(target), Region("mask", mask))
    assert score.nan_pixels == 3
    assert set(score.values) == set(region_metrics(target, target, mask))
    assert all(math.isnan(value) for value in score.values.values())
    assert "3 NaN" in str(score.note)


def test_scans_without_a_region_are_counted() -> None:
    notes = [no_region_note(ScanFile("brain", Path("x"), f"p{i}", "p")) for i in range(5)]
    other = no_region_note(ScanFile("knee", Path("x"), "k1", "p"))
    assert counted([notes[0], "something else", *notes[1:], other]) == [
        "something else",
        "brain: no voxel of the mask or boxes lies in the evaluated slices of 5 scans (p0, p1, p2 and 2 others)",
        "knee: no voxel of the mask or boxes lies in the evaluated slices of 1 scan (k1)",
    ]

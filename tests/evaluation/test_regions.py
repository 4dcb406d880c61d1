"""Region metrics by hand, and the boxes of fastMRI+ in a table of our own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError
from treg_med.evaluation import metrics
from treg_med.evaluation.regions import (
    Annotations,
    Box,
    box_mask,
    cases_per_label,
    common_labels,
    read_boxes,
    region_metrics,
)

HEADER = "file,slice,study_level,x,y,width,height,label\n"


def _lesion() -> tuple[np.ndarray, np.ndarray]:
    """A lesion of 2 on tissue that alternates between 0.9 and 1.1, and where it is."""
    target = np.where(np.indices((3, 40, 40)).sum(axis=0) % 2, 0.9, 1.1)
    mask = np.zeros(target.shape, bool)
    mask[1, 16:22, 18:26] = True
    target[mask] = 2.0
    return target, mask


def test_a_lesion_that_is_kept() -> None:
    target, mask = _lesion()
    found = region_metrics(target, target, mask)
    assert found["lesion_contrast"] == pytest.approx(1.0)
    assert found["ssim_roi"] == pytest.approx(1.0)
    assert found["psnr_roi"] == math.inf and found["nmse_roi"] == 0
    # The lesion is 1 above surroundings whose standard deviation is 0.1.
    assert found["cnr"] == found["cnr_target"] == pytest.approx(10.0, rel=1e-3)
    assert math.isnan(found["error_ratio"])


def test_a_lesion_that_is_washed_out_or_inverted() -> None:
    target, mask = _lesion()
    for value, contrast in ((1.0, 0.0), (1.5, 0.5), (0.5, -0.5)):
        prediction = target.copy()
        prediction[mask] = value
        found = region_metrics(prediction, target, mask)
        assert found["lesion_contrast"] == pytest.approx(contrast, abs=1e-3)
        assert found["psnr_roi"] == pytest.approx(10 * math.log10(4 / (2 - value) ** 2))
        assert found["nmse_roi"] == pytest.approx((2 - value) ** 2 / 4)
        assert found["cnr"] == pytest.approx(10 * abs(contrast), abs=0.01)


def test_error_ratio_compares_inside_with_outside() -> None:
    target, mask = _lesion()
    prediction = target + np.where(mask, 0.3, -0.1)
    assert region_metrics(prediction, target, mask)["error_ratio"] == pytest.approx(3.0)
    everywhere = np.ones(target.shape, bool)
    whole = region_metrics(prediction, target, everywhere)
    assert math.isnan(whole["error_ratio"]) and math.isnan(whole["cnr"])


def test_region_ssim_is_the_map_averaged_over_the_region_in_all_slices() -> None:
    draw = np.random.default_rng(0)
    target, _ = _lesion()
    prediction = target + 0.1 * draw.standard_normal(target.shape)
    mask = np.zeros(target.shape, bool)
    mask[0, 10, 10] = mask[2, 12, 12:15] = mask[2, 0, 0] = True
    # The corner has no whole window and no part in the mean.
    pixels = [(0, 10, 10), (2, 12, 12), (2, 12, 13), (2, 12, 14)]
    windows = [np.s_[z : z + 1, r - 3 : r + 4, c - 3 : c + 4] for z, r, c in pixels]
    values = [metrics.ssim(prediction[window], target[window], 3) for window in windows]
    assert region_metrics(prediction, target, mask, data_range=3)["ssim_roi"] == pytest.approx(np.mean(values))


def test_a_prediction_that_is_not_finite_has_no_region_metrics() -> None:
    target, mask = _lesion()
    prediction = target.copy()
    prediction[1, 18, 20] = np.nan
    found = region_metrics(prediction, target, mask)
    assert all(math.isnan(value) for name, value in found.items() if name != "cnr_target")


def test_regions_that_cannot_be_measured() -> None:
    target, mask = _lesion()
    with pytest.raises(GeometryError, match="empty mask"):
        region_metrics(target, target, np.zeros_like(mask))
    with pytest.raises(GeometryError, match="mask of shape"):
        region_metrics(target, target, mask[:2])
    with pytest.raises(ConfigError, match="positive data range"):
        region_metrics(target, 0 * target, mask)


def test_boxes_are_flipped_up_down(tmp_path: Path) -> None:
    table = tmp_path / "brain.csv"
    table.write_text(
        "﻿" + HEADER + "scan_a,1,No,30,5,4,10,Nonspecific lesion \n"
        "scan_a,0,Yes,,,,,Normal for age\nscan_a,1,No,38,0,9,2,Mass\n"
    )
    found = read_boxes(table)
    assert found.boxes == (
        Box("scan_a", 1, 30, 5, 4, 10, "Nonspecific lesion"),
        Box("scan_a", 1, 38, 0, 9, 2, "Mass"),
    )
    assert found.study_labels == (("scan_a", "Normal for age"),)
    # The example of the annotations' authors: image[:, ::-1], then rows y to y + height.
    shown = np.zeros((3, 50, 40), bool)
    shown[1, 5:15, 30:34] = True
    shown[1, 0:2, 38:40] = True
    mask = box_mask(found.boxes, (3, 50, 40))
    assert np.array_equal(mask, shown[:, ::-1])
    rows = np.flatnonzero(box_mask(found.boxes[:1], (3, 50, 40))[1].any(axis=1))
    assert (rows[0], rows[-1]) == (50 - 5 - 10, 50 - 5 - 1)
    assert not box_mask([], (3, 50, 40)).any()


def test_boxes_outside_or_of_several_scans_are_refused() -> None:
    for box in (Box("a", 3, 0, 0, 2, 2, "x"), Box("a", 0, 40, 0, 2, 2, "x"), Box("a", 0, 0, 50, 2, 2, "x")):
        with pytest.raises(GeometryError, match="is this the right scan"):
            box_mask([box], (3, 50, 40))
    with pytest.raises(ConfigError, match="boxes of one file, got those of a, b"):
        box_mask([Box("a", 0, 0, 0, 2, 2, "x"), Box("b", 0, 0, 0, 2, 2, "x")], (3, 50, 40))


def test_cases_are_scans_not_boxes_and_rare_labels_are_suppressed() -> None:
    boxes = [Box(f"scan{i % 10}", i, 0, 0, 2, 2, "Edema") for i in range(30)]
    boxes += [Box("scan1", i, 0, 0, 2, 2, "Mass") for i in range(25)]
    cases = cases_per_label(Annotations(tuple(boxes), ()))
    assert cases == {"Edema": 10, "Mass": 1}
    assert common_labels(cases) == ({"Edema": 10}, {"Mass": 1})
    assert common_labels(cases, fewest=11) == ({}, cases)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,slice,x,y,width,height,label\n", "study_level"),
        (HEADER + "a,1,No,3,x,4,10,Mass\n", "line 2 of 'boxes.csv'"),
        (HEADER + "a,1,No,3,,4,10,Mass\n", "expected numbers"),
        (HEADER + "a,1,No,3,2.5,4,10,Mass\n", "whole pixels"),
        (HEADER + "a,-1,No,3,2,4,10,Mass\n", "not negative"),
        (HEADER + "a,1,No,3,nan,4,10,Mass\n", "whole pixels"),
        (HEADER + "a,1,No,3,2,0,10,Mass\n", "a box with pixels"),
        (HEADER + "a,1,No,3,2,4,10,\n", "a label"),
        (HEADER + "a,1\n", "expected numbers"),
        ("", "are missing"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_boxes(table)


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="readable table"):
        read_boxes(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(HEADER.encode() + b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="UTF-8"):
        read_boxes(tmp_path / "binary.csv")

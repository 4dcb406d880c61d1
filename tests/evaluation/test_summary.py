"""Rows to means and comparisons by subject."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from tests.evaluation.rows import GAINS, Row, row, table
from treg_med.errors import ConfigError, FormatError
from treg_med.evaluation.report import markdown_table
from treg_med.evaluation.subject_values import SubjectValues
from treg_med.evaluation.summary import main_arm, summarise
from treg_med.evaluation.summary_tables import sections

FEW = 199


def group(summary: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(g for g in summary["groups"] if g["metric"] == metric)


def cell(found: dict[str, Any], method: str, arm: str = "none") -> dict[str, Any]:
    return next(c for c in found["cells"] if (c["method"], c["arm"]) == (method, arm))


def comparison(found: dict[str, Any], kind: str, method: str, arm: str, against_arm: str = "none") -> dict[str, Any]:
    return next(
        c
        for c in found["comparisons"]
        if (c["kind"], c["method"], c["arm"], c["against_arm"]) == (kind, method, arm, against_arm)
    )


def test_slices_then_seeds_then_scans_then_subjects() -> None:
    def of_slices(subject: str, scan: str, seed: int, values: list[float]) -> list[Row]:
        return [
            row(subject, scan=scan, seed=seed, level="slice", slice=i, psnr=value) for i, value in enumerate(values)
        ]

    rows = [
        *of_slices("a", "s1", 0, [1.0, 3.0]),  # 2
        *of_slices("a", "s1", 1, [5.0, 7.0]),  # 6 -> 4
        *of_slices("a", "s2", 0, [10.0] * 6),  # 10 -> 7
        *of_slices("b", "s3", 0, [1.0]),
    ]
    found = cell(group(summarise(rows, resamples=FEW), "psnr"), "tv")
    assert found["subjects"] == {"a": 7.0, "b": 1.0}
    assert (found["n"], found["rows"], found["mean"]) == (2, 11, 4.0)
    assert found["standard_error"] == pytest.approx(3.0)


def test_the_summary_is_strict_json_and_does_not_depend_on_the_run() -> None:
    first = summarise(iter(table()), compare_to="tv", resamples=FEW)
    again = summarise(table(), compare_to="tv", resamples=FEW)
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert [g["metric"] for g in first["groups"]] == ["psnr", "ssim", "nmse", "residual"]
    shuffled = table()
    random.Random(0).shuffle(shuffled)  # noqa: S311
    other = group(summarise(shuffled, compare_to="tv", resamples=FEW), "psnr")
    assert cell(other, "treg", "right")["mean"] == pytest.approx(cell(first["groups"][0], "treg", "right")["mean"])


def test_means_and_differences_by_hand() -> None:
    found = group(summarise(table(4), compare_to="tv", resamples=FEW), "psnr")
    # The gain grows by 5 % of itself from subject to subject: 1, 1.05, 1.1, 1.15 times.
    expected = sum(30 + i + (1 + 0.05 * i) for i in range(4)) / 4
    assert cell(found, "treg", "right")["mean"] == pytest.approx(expected)
    gain = comparison(found, "control", "treg", "right")
    assert gain["against_method"] == "treg-control"
    assert gain["mean_difference"] == pytest.approx(0.8 * 1.075)
    assert gain["interval"][0] <= gain["mean_difference"] <= gain["interval"][1]
    assert comparison(found, "reference", "treg", "wrong")["mean_difference"] == pytest.approx(0.4 * 1.075)


def test_each_kind_of_comparison_is_there_once() -> None:
    found = group(summarise(table(), compare_to="tv", resamples=FEW), "psnr")
    pairs = [(c["kind"], c["method"], c["arm"], c["against_method"], c["against_arm"]) for c in found["comparisons"]]
    assert len(set(pairs)) == len(pairs)
    assert {p[1:3] for p in pairs if p[0] == "reference"} == set(GAINS) - {("tv", "none")}
    assert {p[1:3] for p in pairs if p[0] == "control"} == {key for key in GAINS if key[0] == "treg"}
    assert {p[4] for p in pairs if p[0] == "prompt"} == {"empty", "wrong", "shuffled"}


def test_without_a_reference_a_method_has_its_control_and_others_the_first() -> None:
    found = group(summarise(table(), resamples=FEW), "psnr")
    reference = {(c["method"], c["against_method"]) for c in found["comparisons"] if c["kind"] == "reference"}
    control = {(c["method"], c["against_method"]) for c in found["comparisons"] if c["kind"] == "control"}
    assert reference == {("treg-control", "tv")}
    assert control == {("treg", "treg-control")}


def test_holm_is_over_one_kind_in_one_group() -> None:
    found = group(summarise(table(9), compare_to="tv", resamples=FEW), "psnr")
    single = 2 / 2**9
    # Three prompts; treg and its control against tv, treg's three other texts apart; treg alone against its control.
    prompt = comparison(found, "prompt", "treg", "right", "wrong")
    assert (prompt["p"], prompt["p_holm"]) == pytest.approx((single, 3 * single))
    assert comparison(found, "reference", "treg", "right")["p_holm"] == pytest.approx(2 * single)
    assert comparison(found, "reference", "treg", "wrong")["p_holm"] == pytest.approx(3 * single)
    assert comparison(found, "control", "treg", "right")["p_holm"] == pytest.approx(single)


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    summary = summarise(table(9), compare_to="tv", resamples=FEW)
    for metric, way in (("psnr", "higher"), ("nmse", "lower")):
        found = comparison(group(summary, metric), "prompt", "treg", "right", "wrong")
        assert found["verdict"] == "better"
        assert f"{way} (better) with the right text than with a wrong text" in found["sentence"]
        assert "n = 9 subjects, p = 0.012 after Holm" in found["sentence"]
    assert comparison(group(summary, "psnr"), "prompt", "treg", "right", "empty")["effect_size"] == 1.0
    residual = comparison(group(summary, "residual"), "prompt", "treg", "right", "empty")
    assert residual["verdict"] == "identical"
    assert "is the same" in residual["sentence"]


def test_a_difference_of_either_sign_is_not_distinguishable_from_zero() -> None:
    rows = [
        row(f"{i}", "treg", arm=arm, psnr=30.0 + i + (0.1 * (-1) ** i * (i + 1) if arm == "right" else 0.0))
        for i in range(8)
        for arm in ("right", "empty")
    ]
    found = comparison(group(summarise(rows, resamples=FEW), "psnr"), "prompt", "treg", "right", "empty")
    assert found["verdict"] == "not distinguishable"
    assert found["sentence"].startswith("treg, PSNR with the right text is not distinguishable from that with an empty")


def test_too_few_subjects_are_said_plainly() -> None:
    found = comparison(group(summarise(table(2), resamples=FEW), "psnr"), "prompt", "treg", "right", "wrong")
    assert (found["p"], found["p_holm"], found["verdict"]) == (None, None, "n too small")
    assert found["note"] == "n too small (n = 2 subjects; 6 are needed)"
    assert found["sentence"].endswith("n too small (n = 2 subjects; 6 are needed).")


def test_too_few_subjects_for_so_many_comparisons_are_said_too() -> None:
    # Six of one sign have p = 1/32; three comparisons make 3/32 of the smallest.
    found = comparison(group(summarise(table(6), resamples=FEW), "psnr"), "prompt", "treg", "right", "wrong")
    assert found["p"] == pytest.approx(1 / 32)
    assert found["verdict"] == "n too small"
    assert found["note"] == "n too small for 3 comparisons together (n = 6 subjects: at best p = 0.094 after Holm)"


def test_a_single_subject_has_no_interval_and_no_standard_error() -> None:
    found = cell(group(summarise(table(1), resamples=FEW), "psnr"), "tv")
    assert (found["n"], found["interval"], found["standard_error"]) == (1, None, None)


def test_a_prediction_with_nan_is_left_out_counted_and_not_paired() -> None:
    rows = table(7)
    broken = next(r for r in rows if r["subject"] == "03" and r["arm"] == "right")
    broken |= {"psnr": math.nan, "nan_pixels": 12}
    found = group(summarise(rows, compare_to="tv", resamples=FEW), "psnr")
    right = cell(found, "treg", "right")
    assert (right["n"], right["rows"], right["nan"], right["nan_predictions"]) == (6, 7, 1, 1)
    assert "03" not in right["subjects"]
    prompt = comparison(found, "prompt", "treg", "right", "empty")
    assert (prompt["n"], prompt["left_out"]) == (6, 1)


def test_a_slice_without_content_is_left_out_of_both_and_pairs_stay() -> None:
    rows = [
        row(f"{i}", method, level="slice", slice=s, psnr=math.nan if s == 0 else 30.0 + i + s)
        for i in range(3)
        for method in ("tv", "unet")
        for s in range(4)
    ]
    found = group(summarise(rows, compare_to="tv", resamples=FEW), "psnr")
    assert (cell(found, "unet")["nan"], cell(found, "unet")["nan_predictions"]) == (3, 0)
    assert comparison(found, "reference", "unet", "none")["n"] == 3
    # One slice more is missing in one method: the means are over different slices.
    rows[5]["psnr"] = math.nan
    again = comparison(
        group(summarise(rows, compare_to="tv", resamples=FEW), "psnr"), "reference", "unet", "none"
    )
    assert (again["n"], again["left_out"]) == (2, 1)


def test_a_method_without_any_finite_value_has_no_mean() -> None:
    rows = [r | ({"psnr": math.nan, "nan_pixels": 1} if r["method"] == "tv" else {}) for r in table(3)]
    found = group(summarise(rows, compare_to="tv", resamples=FEW), "psnr")
    assert (cell(found, "tv")["n"], cell(found, "tv")["mean"]) == (0, None)
    none = comparison(found, "reference", "treg", "right")
    assert (none["n"], none["verdict"], none["mean_difference"]) == (0, "no pairs", None)


def test_metrics_that_a_protocol_lacks_have_no_group() -> None:
    rows = [row("a", psnr=30.0, rmse_hu=None), row("a", protocol="volume", psnr=31.0, rmse_hu=12.0)]
    found = [(g["protocol"], g["metric"]) for g in summarise(rows, resamples=FEW)["groups"]]
    assert found == [("fastmri", "psnr"), ("volume", "psnr"), ("volume", "rmse_hu")]


def test_only_the_metrics_asked_for() -> None:
    assert {g["metric"] for g in summarise(table(2), metrics=["ssim"], resamples=FEW)["groups"]} == {"ssim"}
    with pytest.raises(ConfigError, match="haarpsi"):
        summarise(table(2), metrics=["haarpsi"])


def test_protocols_levels_and_datasets_are_groups_of_their_own() -> None:
    rows = [
        row("a", psnr=30.0),
        row("a", protocol="volume", psnr=20.0),
        row("a", level="slice", slice=0, psnr=10.0),
        row("a", dataset="knee", psnr=40.0),
        row("a", scenario="sc-r8", psnr=50.0),
    ]
    summary = summarise(rows, resamples=FEW)
    assert [g["cells"][0]["mean"] for g in summary["groups"]] == [30.0, 20.0, 10.0, 40.0, 50.0]


def test_slices_of_volumes_of_one_slice_have_no_table_of_their_own() -> None:
    volumes = [row("a", psnr=30.0), row("b", psnr=20.0)]
    same = [row("a", level="slice", slice=0, psnr=30.0), row("b", level="slice", slice=4, psnr=20.0)]
    other = [row("a", level="slice", slice=0, psnr=30.0), row("b", level="slice", slice=4, psnr=21.0)]
    alone = [row("a", protocol="lodopab", level="slice", slice=0, psnr=30.0)]

    def levels(rows: list[Row]) -> list[str]:
        return [section.level for section in sections(summarise(rows, resamples=FEW))]

    assert levels([*volumes, *same]) == ["volume"]
    assert levels([*volumes, *other]) == ["volume", "slice"]
    assert levels([*volumes, *alone]) == ["volume", "slice"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subject": "b", "scan": "x", "protocol_version": 2}, "one version of protocol 'fastmri'"),
        ({"subject": "b", "scan": "x", "slice": 3}, "level 'volume' with slice 3"),
        ({"subject": "b", "scan": "x", "level": "slice"}, "level 'slice' with slice None"),
        ({"subject": "b", "scan": "x", "level": "pixel"}, "level 'pixel'"),
        ({}, "twice"),
        ({"subject": "b", "scan": "x", "preset": "paper"}, "one method behind the label 'tv'"),
        ({"subject": "b", "scan": "x", "control": True}, "one method behind the label 'tv'"),
        ({"method": "unet", "data_range": 2.0}, "one target for all methods"),
        ({"method": "unet", "crop": "320x320"}, "one target for all methods"),
    ],
)
def test_a_mixed_table_is_refused(changed: Row, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        summarise([row("a", psnr=30.0), row("a", psnr=31.0) | changed])


@pytest.mark.parametrize("column", ["subject", "protocol_version", "arm", "control"])
def test_a_row_without_a_column_is_refused(column: str) -> None:
    with pytest.raises(FormatError, match=f"'{column}' in every row of the table, row 2"):
        summarise([row("a", psnr=30.0), {name: value for name, value in row("b").items() if name != column}])


def test_unusable_values_are_refused() -> None:
    with pytest.raises(FormatError, match="'nonsense'"):
        summarise([row("a", psnr=30.0, arm="nonsense")])
    with pytest.raises(FormatError, match="column 'psnr'"):
        summarise([row("a", psnr="30.0")], metrics=["psnr"])
    with pytest.raises(ConfigError, match="at least one row"):
        summarise([])
    with pytest.raises(ConfigError, match="did you mean 'treg'"):
        summarise(table(1), compare_to="trge")


def test_a_reference_of_which_all_volumes_failed() -> None:
    summary = summarise(table(2), compare_to="vendor", methods=["vendor"], resamples=FEW)
    assert {c["kind"] for g in summary["groups"] for c in g["comparisons"]} == {"control", "prompt"}


def test_main_arm() -> None:
    assert main_arm(["empty", "right"]) == "right"
    assert main_arm(["none"]) == "none"
    assert main_arm(["wrong", "empty"]) == "wrong"


def test_memory_does_not_grow_with_slices() -> None:
    def slices(count: int) -> Iterator[Row]:
        return (row(str(i % 5), level="slice", slice=i // 5, psnr=float(i)) for i in range(5 * count))

    def peak(count: int) -> int:
        tracemalloc.start()
        SubjectValues(slices(count))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(2000) < peak(20) + 50_000


def regions(label: str, cases: int, **changed: Any) -> list[Row]:
    rows = []
    for index in range(cases):
        for method, psnr in (("tv", 20.0 + index), ("net", 21.0 + index)):
            rows.append(row(f"{index:02d}", method, protocol="region", mask=label, psnr_roi=psnr) | changed)
    return rows


def test_regions_are_kept_apart() -> None:
    rows = [*regions("mask", 2), *regions("box: Mass", 10, psnr_roi=1.0), *table(2)]
    found = summarise(rows, compare_to="tv", resamples=FEW)
    groups = {g["region"]: g for g in found["groups"] if g["metric"] == "psnr_roi"}
    assert set(groups) == {"mask", "box: Mass"}
    assert cell(groups["mask"], "net")["mean"] == pytest.approx(21.5)
    assert cell(groups["box: Mass"], "net")["mean"] == 1.0
    assert groups["mask"]["conditions"] == [{"crop": None, "mask": "mask"}]
    assert {g["region"] for g in found["groups"] if g["protocol"] == "fastmri"} == {None}
    titles = [section.title for section in sections(found)]
    assert "brain · mc-r4 · region (version 1) · box: Mass · volume level" in titles
    assert "brain · mc-r4 · fastmri (version 1) · volume level" in titles
    json.dumps(found, allow_nan=False)


def test_labels_with_few_cases_have_no_mean() -> None:
    # A mask has no label: what it is of was decided by whoever drew it.
    rows = [*regions("box: Mass", 9), *regions("box: Edema", 10), *regions("mask", 1), *table(2)]
    found = summarise(rows, resamples=FEW)
    assert {g["region"] for g in found["groups"]} == {None, "mask", "box: Edema"}
    assert found["suppressed"] == [
        {"dataset": "brain", "scenario": "mc-r4", "protocol": "region", "region": "box: Mass", "cases": 9}
    ]
    assert "box: Mass" not in markdown_table(found)
    # Ten rows of five scans are five cases.
    seeds = [row for seed in (0, 1) for row in regions("box: Mass", 5, seed=seed)]
    assert [each["cases"] for each in summarise([*seeds, *table(2)], resamples=FEW)["suppressed"]] == [5]


def test_the_same_region_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"region version 1, box: Mass, volume level\) twice"):
        summarise([*regions("box: Mass", 1), *regions("box: Mass", 1)], resamples=FEW)
    with pytest.raises(ConfigError, match="one version of protocol 'region'"):
        summarise([*regions("box: Mass", 1), *regions("mask", 1, protocol_version=2)], resamples=FEW)

"""Requirements are read strictly and never pass silently."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.evaluation.rows import row, table
from treg_med.errors import ConfigError
from treg_med.evaluation.requirements import Requirement, check
from treg_med.evaluation.summary import summarise


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    rows = table(4) + table(4, scenario="sc-r8")
    return summarise(rows, compare_to="tv", resamples=99)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssim>=0.85", Requirement("ssim", ">=", 0.85)),
        (" psnr > 30 ", Requirement("psnr", ">", 30.0)),
        ("rmse_hu<=7e1", Requirement("rmse_hu", "<=", 70.0)),
        ("treg:nmse<.5", Requirement("nmse", "<", 0.5, "treg")),
        ("treg-v1.2@mc-r4:ssim>=0.85", Requirement("ssim", ">=", 0.85, "treg-v1.2", "mc-r4")),
        ("@mc-r4:ssim>=0.85", Requirement("ssim", ">=", 0.85, None, "mc-r4")),
    ],
)
def test_what_is_read(text: str, expected: Requirement) -> None:
    found = Requirement.parse(text)
    assert found == expected
    assert Requirement.parse(str(found)) == expected


@pytest.mark.parametrize("text", ["", "ssim", "ssim=0.8", "ssim>=", "ssim>=nan", "ssim>=0,8", ":ssim>=1", "a:b:ssim>=1", "ssim>=1 2", "0.8<=ssim", "treg@:ssim>=1"])  # fmt: skip # noqa: E501
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a requirement like"):
        Requirement.parse(text)


def test_of_all_methods_but_controls_and_the_right_text(summary: dict[str, Any]) -> None:
    found = check(["psnr>=31.6"], summary)
    assert [(each.passed, each.where.split(",")[0], "sc-r8" in each.where) for each in found] == [
        (False, "tv", False),
        (True, "treg", False),
        (False, "tv", True),
        (True, "treg", True),
    ]
    # Only the right text reaches it.
    assert found[1].value == pytest.approx(32.575)
    assert "right text" in found[1].where
    assert found[0].reason == "the mean is 31.5 dB"
    assert str(found[0]).startswith("psnr>=31.6: NOT MET (tv, brain, mc-r4, fastmri 1, volume): the mean")


def test_of_a_method_and_a_scenario(summary: dict[str, Any]) -> None:
    (found,) = check([Requirement("nmse", "<", 1e-3, "treg", "sc-r8")], summary)
    assert found.passed
    assert found.requirement == "treg@sc-r8:nmse<0.001"
    (control,) = check(["treg-control@mc-r4:psnr>=33"], summary)
    assert not control.passed


@pytest.mark.parametrize(("sign", "passed"), [(">=", True), (">", False), ("<=", True), ("<", False)])
def test_the_bound_itself(sign: str, passed: bool) -> None:
    found = check([f"psnr{sign}30"], summarise([row("a", psnr=30.0)], resamples=99))
    assert [each.passed for each in found] == [passed]


def test_nothing_that_matches_fails(summary: dict[str, Any]) -> None:
    (found,) = check(["mae_hu<=50"], summary)
    assert not found.passed
    assert found.value is None
    assert "matches" in str(found)
    (lost,) = check(["vendor:psnr>=1"], summary, methods=["vendor"])
    assert not lost.passed


def test_unknown_names_are_errors(summary: dict[str, Any]) -> None:
    for text, message in (
        ("sim>=0.8", "expected a metric .* did you mean 'ssim'"),
        ("trge:ssim>=0.8", "expected a method .* did you mean 'treg'"),
        ("treg@mc-r5:ssim>=0.8", "expected a scenario .* did you mean 'mc-r4'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check([text], summary)


def test_nan_fails() -> None:
    rows = [row("a", psnr=40.0), row("b", psnr=math.nan, nan_pixels=3)]
    (found,) = check(["psnr>=30"], summarise(rows, resamples=99))
    assert not found.passed
    assert found.reason == "1 of 2 rows are NaN"
    rows = [row("a", psnr=math.nan)]
    (found,) = check(["psnr>=30"], summarise(rows, resamples=99))
    assert not found.passed
    assert found.value is None


def test_slices_with_nothing_to_score_do_not_fail_it() -> None:
    rows = [row("a", level="slice", slice=s, psnr=math.nan if s == 0 else 40.0) for s in range(3)]
    assert [each.passed for each in check(["psnr>=30"], summarise(rows, resamples=99))] == [True]

"""Statistics against scipy, against enumeration and against numbers worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from treg_med.errors import ConfigError, NumericsError
from treg_med.evaluation.statistics import (
    bca_interval,
    holm,
    paired_wilcoxon,
    rank_biserial,
    standard_error,
)


def test_standard_error() -> None:
    assert standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert math.isnan(standard_error([1.0]))


@pytest.mark.parametrize("count", [12, 20, 60])
def test_bca_equals_scipy_on_the_same_resamples(count: int) -> None:
    values = np.random.default_rng(count).gamma(2.0, 1.0, count)
    ours = bca_interval(values, seed=5)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, batch=9999, method="BCa", rng=np.random.default_rng([5, 0])
    ).confidence_interval
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_bca_of_a_single_value_is_unknown_and_of_equal_values_a_point() -> None:
    assert bca_interval([0.3]) is None
    equal = bca_interval([0.1 + 0.2] * 7)
    assert equal is not None
    assert (equal.low, equal.high) == pytest.approx((0.3, 0.3))
    zeros = bca_interval([0.0, 0.0])
    assert zeros is not None
    assert (zeros.low, zeros.high) == (0.0, 0.0)


def test_bca_moves_with_the_values_and_depends_only_on_the_seed() -> None:
    values = np.random.default_rng(1).exponential(1.0, 9)
    first, again, other = (bca_interval(values, seed=seed) for seed in (0, 0, 1))
    moved = bca_interval(1e4 + 100 * values, seed=0)
    assert first is not None
    assert moved is not None
    assert first == again
    assert first != other
    assert (moved.low, moved.high) == pytest.approx((1e4 + 100 * first.low, 1e4 + 100 * first.high))


def test_bca_of_many_values_is_drawn_in_blocks() -> None:
    values = np.random.default_rng(2).normal(5.0, 2.0, 3000)
    found = bca_interval(values, resamples=999)
    half = 1.96 * standard_error(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half)


def test_bca_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(400):
        found = bca_interval(generator.normal(0.7, 1.0, 30), resamples=999)
        assert found is not None
        covered += found.low <= 0.7 <= found.high
    # 400 trials of a 93 to 95 % interval: less than 90 % or more than 98 % would be a fault.
    assert 0.90 <= covered / 400 <= 0.98


def test_bca_of_a_skewed_mean_is_shifted_to_the_long_side() -> None:
    values = np.random.default_rng(3).lognormal(0.0, 1.0, 15)
    found = bca_interval(values)
    assert found is not None
    assert found.high - values.mean() > 1.1 * (values.mean() - found.low)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_values_that_are_not_finite_are_refused(values: list[float]) -> None:
    for function in (bca_interval, paired_wilcoxon, rank_biserial, standard_error):
        with pytest.raises(NumericsError, match="finite"):
            function(values)


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="level"):
        bca_interval([1.0, 2.0], level=95)
    with pytest.raises(ConfigError, match="resample"):
        bca_interval([1.0, 2.0], resamples=0)


@pytest.mark.parametrize("count", [6, 9, 25, 50])
def test_wilcoxon_equals_the_exact_one_of_scipy(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.4, 1.0, count)
    found = paired_wilcoxon(differences)
    assert found.exact
    assert found.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=1e-10)


def test_wilcoxon_by_hand() -> None:
    # Six of one sign: 1 of 64 on each side.
    assert paired_wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).p == pytest.approx(2 / 64)
    # The smallest one negative: sums 0 and 1 of 64 on each side.
    assert paired_wilcoxon([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).p == pytest.approx(4 / 64)


@pytest.mark.parametrize(
    "differences",
    [[1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -3.0], [0.0, 0.0, 1.0, -2.0, 2.0, 4.0, 5.0, 5.0], [0.0, 3.0, 3.0, 3.0, 3.0, -3.0]],
)
def test_wilcoxon_with_ties_and_zeros_is_that_of_all_signs(differences: list[float]) -> None:
    ranks = stats.rankdata(np.abs(differences))[np.asarray(differences) != 0]
    signs = np.array(list(itertools.product([0, 1], repeat=len(ranks))))
    sums = signs @ ranks
    positive = stats.rankdata(np.abs(differences))[np.asarray(differences) > 0].sum()
    larger = max(positive, ranks.sum() - positive)
    found = paired_wilcoxon(differences)
    assert found.p == pytest.approx(min(1.0, 2 * np.mean(sums >= larger)))
    assert found.zeros == differences.count(0.0)


def test_wilcoxon_of_many_pairs_is_the_normal_one_of_scipy() -> None:
    differences = np.random.default_rng(8).integers(-3, 5, 300).astype(float)
    found = paired_wilcoxon(differences)
    theirs = stats.wilcoxon(differences, zero_method="pratt", method="asymptotic")
    assert not found.exact
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)


def test_wilcoxon_exact_and_normal_meet() -> None:
    differences = np.random.default_rng(9).normal(0.2, 1.0, 200)
    exact = paired_wilcoxon(differences)
    assert exact.exact
    assert exact.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=1e-10)
    assert exact.p == pytest.approx(stats.wilcoxon(differences, method="asymptotic").pvalue, abs=1e-4)


def test_too_few_pairs_have_no_p_value_but_say_so() -> None:
    found = paired_wilcoxon([1.0, 2.0])
    assert found.p is None
    assert found.note == "n too small (n = 2 subjects; 6 are needed)"
    assert "1 subject;" in paired_wilcoxon([1.0]).note


def test_nothing_but_zeros_is_no_difference() -> None:
    found = paired_wilcoxon([0.0] * 8)
    assert (found.p, found.zeros) == (1.0, 8)
    assert rank_biserial([0.0] * 8) == 0.0


def test_rank_biserial_by_hand() -> None:
    assert rank_biserial([1.0, 2.0, 3.0, -4.0]) == pytest.approx((6 - 4) / 10)
    assert rank_biserial([0.1, 0.2]) == 1.0
    assert rank_biserial([-3.0]) == -1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ConfigError, match="between 0 and 1"):
        holm([0.5, math.nan])

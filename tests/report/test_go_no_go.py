"""Denoising gain, tuning and oracle start against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.report.exact import SIDE, CaptionReader, covariance, draw
from treg_med.assessment.classical import Image, psnr, total_variation, tuned_weight
from treg_med.assessment.gain import denoising_gain
from treg_med.assessment.oracle import oracle_start, oracle_treg
from treg_med.errors import NumericsError
from treg_med.solvers.treg import TReg
from treg_med.training.slices import CaptionedSlices

STD = 0.2
CAPTION = "axial T2-FLAIR brain MRI"


def exact() -> tuple[CaptionReader, CaptionedSlices]:
    mean = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    return CaptionReader({"any": mean}, STD, lambda caption: "any"), draw([mean] * 12, [CAPTION] * 12, STD)


def test_the_exact_prior_reaches_the_posterior_variance_and_beats_total_variation() -> None:
    prior, slices = exact()
    scored, tuning = slices.take(range(8)), slices.take(range(8, 12))
    result = denoising_gain(prior, scored, tuning, "made up", levels=(100, 300, 500))
    assert result.encoder_gain == pytest.approx(1, abs=1e-5)
    variances = torch.linalg.eigvalsh(covariance(STD))
    for level in result.levels:
        alpha = float(prior.alphas_cumprod[level.timestep])
        posterior = float((variances * (1 - alpha) / (alpha * variances + 1 - alpha)).mean())
        assert level.noise_std == pytest.approx(math.sqrt((1 - alpha) / alpha) / 2)
        assert level.psnr_db["prior"] == pytest.approx(10 * math.log10(4 / posterior), abs=0.4)
        assert level.gain_db["total variation"][0] > 0.3
        assert level.gain_db["non-local means"][0] > 0.3
    assert [level.bar_db for level in result.levels] == [None, 2.0, 4.0]
    assert [level.met is None for level in result.levels] == [True, False, False]


def test_total_variation_weight_is_the_best_of_a_fine_grid() -> None:
    _, slices = exact()
    clean = [np.asarray(x[0], dtype=np.float32) / 255 for x in slices.images[:3]]
    rng = np.random.default_rng(0)
    noisy = [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in clean]
    weight, score = tuned_weight(total_variation, noisy, clean, 0.1)

    def mean(w: float) -> float:
        return float(np.mean([psnr(total_variation(y, w, 0.1), x) for y, x in zip(noisy, clean, strict=True)]))

    assert score == pytest.approx(mean(weight))
    assert score >= max(mean(w) for w in np.geomspace(weight / 4, weight * 4, 17)) - 0.01


@pytest.mark.parametrize("best", [0.06, 1.0, 37.0])
def test_tuning_finds_a_known_optimum(best: float) -> None:
    def denoiser(noisy: Image, weight: float, std: float) -> Image:
        return noisy + np.float32(0.01 * abs(math.log(weight / best)) + 0.001)

    image = np.zeros((4, 4), dtype=np.float32)
    assert tuned_weight(denoiser, [image], [image], 1.0)[0] == pytest.approx(best, rel=0.03)


def test_tuning_refuses_an_optimum_at_the_edge() -> None:
    def denoiser(noisy: Image, weight: float, std: float) -> Image:
        return noisy + np.float32(1 / (1 + weight))

    image = np.zeros((4, 4), dtype=np.float32)
    with pytest.raises(NumericsError, match="optimum"):
        tuned_weight(denoiser, [image], [image], 1.0)


def test_a_start_from_the_truth_ends_nearer_to_it() -> None:
    prior, slices = exact()
    result = oracle_start(prior, slices.evenly(3), "made up", timestep=40, steps=3)
    assert set(result.gain_db) == {"TReg, default start", "TReg, oracle start"}
    assert result.psnr_db["TReg, oracle start"] > result.psnr_db["TReg, default start"] + 0.5
    assert result.met == (result.gain_db["TReg, oracle start"][0] >= result.bar_db)


def test_the_oracle_is_the_default_solver_but_for_its_start() -> None:
    truth = torch.zeros(SIDE, SIDE)
    assert oracle_treg(truth, 500) != TReg()
    assert vars(oracle_treg(truth, 500)) == vars(TReg())
    assert oracle_treg(truth, 500, steps=3).steps == 3

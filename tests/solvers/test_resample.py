"""ReSample: its draw, its variances, its parts and what the public code gets wrong."""

from __future__ import annotations

import pytest
import torch

from tests.solvers.exact import data, posterior_mean, posterior_statistics, space
from treg_med.solvers.ddim import ddim_steps
from treg_med.solvers.resample import ReSample, resample

SAMPLES = 100_000


def _draw(variance: float, alpha: float = 0.3) -> torch.Tensor:
    noise = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.ones(SAMPLES, dtype=torch.float64)
    a, s = (torch.tensor(v, dtype=torch.float64) for v in (alpha, variance))
    return resample(2 * one, -one, a, s, noise)


@pytest.mark.parametrize("variance", [0.05, 0.7, 20.0])
def test_the_draw_has_mean_and_variance_of_the_product_of_two_gaussians(variance: float) -> None:
    alpha = 0.3
    drawn = _draw(variance, alpha)
    precision = 1 / variance + 1 / (1 - alpha)
    mean = (-1 / variance + alpha**0.5 * 2 / (1 - alpha)) / precision
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.02)
    assert float(drawn.var()) == pytest.approx(1 / precision, rel=0.02)


def test_no_variance_keeps_the_trajectory_and_much_noises_the_fitted_latent() -> None:
    assert torch.allclose(_draw(0.0), torch.tensor(-1.0, dtype=torch.float64), atol=1e-5)
    encoded = _draw(1e12)
    assert float(encoded.mean()) == pytest.approx(2 * 0.3**0.5, abs=0.01)
    assert float(encoded.var()) == pytest.approx(0.7, rel=0.02)


def test_a_third_of_the_loop_has_no_hard_step_and_the_rest_every_tenth() -> None:
    _, y = data(1)
    steps = ddim_steps(space(y).prior, 500, space(y).blank_latent())
    solver = ReSample.from_preset("paper")
    left = [499 - s.index for s in steps if solver._is_hard(s)]
    assert left == list(range(330, 0, -10))
    assert len(left) == 33


def test_the_paper_takes_as_many_evaluations_as_published() -> None:
    """500 steps, and five steps of time travel before each of 33 hard ones."""
    solver = ReSample.from_preset("paper", image_iterations=1, latent_iterations=1, soft_size=0.0)
    _, y = data(1)
    problem = space(y)
    with torch.no_grad():
        solver.sample(problem)
    assert problem.problem.nfe == 500 + 5 * 33


def test_every_part_helps_and_the_loop_stops_at_the_noise() -> None:
    full = posterior_statistics(ReSample())
    assert full.to_truth < 1.35
    assert full.residual < 1.05
    assert full.residual > 0.6
    no_hard = posterior_statistics(ReSample(hard_every=1000))
    no_soft = posterior_statistics(ReSample(soft_size=0.0))
    assert full.to_truth < no_hard.to_truth
    assert full.to_truth < no_soft.to_truth


def test_the_public_tolerance_fits_the_noise() -> None:
    """A hundredth of the noise variance, as released, drives the last fit past the noise; the variance stops it."""
    _, y = data(8)
    problem = space(y)
    with torch.no_grad():
        start = problem.data_step(posterior_mean(y)[:, None], 10.0, max_iter=20)
        released = ReSample(tolerance=0.01, latent_iterations=400)._fit_latent(problem, start + 0.05)
        stopped = ReSample(latent_iterations=400)._fit_latent(problem, start + 0.05)
    assert float(problem.residual(start + 0.05).min()) > 1
    assert 0.9 < float(problem.residual(stopped).min())
    assert float(problem.residual(stopped).max()) <= 1
    assert float(problem.residual(released).max()) < 0.85


def test_fits_stop_for_every_image_by_itself() -> None:
    _, y = data(2)
    y = torch.stack([y[0], 1.5 * y[1]])
    solver = ReSample(steps=10, hard_every=2)
    with torch.no_grad():
        both = solver.sample(space(y))
        alone = [solver.sample(space(y[i : i + 1])) for i in range(2)]
    for i in range(2):
        assert torch.allclose(both[i], alone[i][0], atol=1e-9)

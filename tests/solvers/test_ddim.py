"""Timesteps and algebra of DDIM steps."""

import pytest
import torch
from torch import Tensor

from tests.solvers.exact import gaussian_prior
from treg_med.errors import ConfigError
from treg_med.priors.base import Prediction
from treg_med.solvers.ddim import DDIMStep, ddim_steps, steps_between

LIKE = torch.zeros(2, 1, 4, 4, dtype=torch.float64)


def _noise(seed: int) -> Tensor:
    return torch.randn(LIKE.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_hundred_steps_of_a_thousand_are_those_of_the_publication() -> None:
    steps = ddim_steps(gaussian_prior(), 200, LIKE)
    assert [int(s.timestep[0]) for s in steps] == list(range(996, 0, -5))
    assert steps[-1].last
    assert not steps[-2].last
    assert bool((steps[-1].next_alpha == 1).all())
    for before, after in zip(steps[:-1], steps[1:], strict=True):
        assert torch.equal(before.next_alpha, after.alpha)


def test_levels_can_be_read_one_timestep_early_and_end_short_of_one() -> None:
    prior = gaussian_prior()
    steps = ddim_steps(prior, 200, LIKE, shift=1, last_alpha=0.9)
    assert float(steps[0].alpha[0]) == float(prior.alphas_cumprod[995])
    assert bool((steps[-1].next_alpha == 0.9).all())


def test_more_steps_than_the_schedule_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 1000 steps"):
        ddim_steps(gaussian_prior(), 1001, LIKE)


def test_every_image_has_its_own_levels() -> None:
    first, last = torch.tensor([torch.inf, 0.5]), torch.tensor([0.01, 0.1])
    steps = steps_between(gaussian_prior(), 7, LIKE, first, last)
    ratios = torch.stack([s.noise_ratio.flatten() for s in steps])
    assert ratios[0, 0] > 50
    assert ratios[0, 1] == pytest.approx(0.5, rel=0.02)
    assert torch.allclose(ratios[-1], last.double(), rtol=0.1)
    assert bool((ratios[:-1] > ratios[1:]).all())


def test_a_step_with_the_true_noise_keeps_clean_and_noise_apart() -> None:
    step = ddim_steps(gaussian_prior(), 10, LIKE)[4]
    clean, noise = _noise(0), _noise(1)
    latent = step.noised(clean, noise)
    assert torch.allclose(step.implied_noise(latent, clean), noise)
    following = step.next_alpha.sqrt() * clean + (1 - step.next_alpha).sqrt() * noise
    assert torch.allclose(step(Prediction(noise, clean)), following)
    assert torch.equal(step(Prediction(noise, clean), _noise(2), 0.0), step(Prediction(noise, clean)))


def _variance(step: DDIMStep, eta: float) -> Tensor:
    """Variance that a step gives to its result, from independent unit noises."""
    zero = torch.zeros_like(LIKE)
    kept = step(Prediction(torch.ones_like(LIKE), zero), zero, eta)
    fresh = step(Prediction(zero, zero), torch.ones_like(LIKE), eta)
    return kept.square() + fresh.square()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_fresh_noise_replaces_predicted_noise_at_equal_variance(eta: float) -> None:
    for step in ddim_steps(gaussian_prior(), 10, LIKE):
        assert torch.allclose(_variance(step, eta), (1 - step.next_alpha).expand_as(LIKE))
    ancestral = ddim_steps(gaussian_prior(), 10, LIKE)[3]
    a, b = ancestral.alpha, ancestral.next_alpha
    fresh = ancestral(Prediction(torch.zeros_like(LIKE), torch.zeros_like(LIKE)), torch.ones_like(LIKE), 1.0)
    assert torch.allclose(fresh.square(), ((1 - b) / (1 - a) * (1 - a / b)).expand_as(LIKE))

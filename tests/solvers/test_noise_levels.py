"""Noise levels in image units and the timesteps that stand for them."""

from pathlib import Path

import pytest
import torch

from treg_med.priors import GaussianPrior, LatentPrior
from treg_med.solvers.noise_levels import encoder_gain, noise_levels


def _prior() -> GaussianPrior:
    return GaussianPrior({"": torch.full((8, 8), -1.0)}, torch.eye(64, dtype=torch.float64))


def test_levels_fall_geometrically_between_the_ends_of_each_image() -> None:
    prior = _prior()
    levels = noise_levels(prior, 1.0, torch.tensor([0.5, 2.0]), torch.tensor([0.05, 0.5]), 7)
    std = torch.stack([level.std for level in levels])
    timesteps = torch.stack([level.timestep for level in levels])
    assert std.shape == (7, 2) and bool((std.diff(dim=0) < 0).all())
    wanted = torch.tensor([[0.5, 2.0], [0.5**0.5 * 0.05**0.5, 1.0], [0.05, 0.5]])
    assert torch.allclose(std[[0, 3, 6]], wanted, rtol=0.02)
    alphas = prior.alphas_cumprod[timesteps]
    assert torch.allclose(std.double(), ((1 - alphas) / alphas).sqrt(), rtol=1e-5)


def test_levels_beyond_the_schedule_take_its_ends() -> None:
    (level,) = noise_levels(_prior(), 1.0, torch.tensor([torch.inf, 1e-9]), torch.tensor([1.0, 1e-9]), 1)
    assert level.timestep.tolist()[0] >= 990 and level.timestep.tolist()[1] == 1
    assert bool(torch.isfinite(level.std).all())


def test_gain_scales_the_latent_noise(tiny_prior_folder: Path) -> None:
    tiny_prior = LatentPrior.from_pretrained(tiny_prior_folder)
    assert encoder_gain(_prior(), torch.zeros(1, 1, 8, 8)) == pytest.approx(1.0, rel=1e-4)
    side = tiny_prior.image_multiple * 4
    gain = encoder_gain(tiny_prior, torch.zeros(1, 1, side, side))
    noise = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(1)) * 0.05
    with torch.no_grad():
        moved = tiny_prior.encode(noise) - tiny_prior.encode(torch.zeros_like(noise))
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.05 * gain, rel=0.3)

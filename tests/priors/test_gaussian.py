"""The exact prior must be exact, since everything else is measured against it."""

import pytest
import torch

from treg_med.errors import ConfigError
from treg_med.guidance import guided_prediction
from treg_med.priors import GaussianPrior, Prior


def _prior() -> GaussianPrior:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(16, 16, generator=generator, dtype=torch.float64) / 4
    covariance = factor @ factor.T + 0.05 * torch.eye(16, dtype=torch.float64)
    means = {
        "": torch.zeros(4, 4, dtype=torch.float64),
        "bright": torch.full((4, 4), 0.5, dtype=torch.float64),
    }
    return GaussianPrior(means, covariance)


@pytest.mark.parametrize("timestep", [0, 300, 700, 999])
def test_clean_estimate_is_the_conditional_mean(timestep: int) -> None:
    prior = _prior()
    z = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    a = prior.alphas_cumprod[timestep]
    mean = prior.embed(["bright", "bright"])
    system = a * prior.covariance + (1 - a) * torch.eye(16, dtype=torch.float64)
    expected = (
        mean.flatten(1)
        + (a.sqrt() * prior.covariance @ torch.linalg.solve(system, (z - a.sqrt() * mean).flatten(1).T)).T
    )
    noise, clean = prior.predict(z, timestep, mean)
    assert torch.allclose(clean.flatten(1), expected, atol=1e-10)
    assert torch.allclose(a.sqrt() * clean + (1 - a).sqrt() * noise, z, atol=1e-10)


def test_one_timestep_per_latent_is_each_by_itself() -> None:
    prior = _prior()
    z = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    text, null = prior.embed(["bright", "bright"]), prior.embed(["", ""])
    together = guided_prediction(prior, z, torch.tensor([200, 700]), text, null, 2.0)
    for index, timestep in enumerate((200, 700)):
        pick = slice(index, index + 1)
        alone = guided_prediction(prior, z[pick], timestep, text[pick], null[pick], 2.0)
        assert torch.allclose(together.clean[pick], alone.clean, atol=1e-12)
        assert torch.allclose(together.noise[pick], alone.noise, atol=1e-12)


def test_guidance_end_points_and_extrapolation() -> None:
    prior = _prior()
    assert isinstance(prior, Prior)
    z = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    text, null = prior.embed("bright"), prior.embed("")
    with_text, without = prior.predict(z, 500, text), prior.predict(z, 500, null)
    assert torch.equal(guided_prediction(prior, z, 500, text, null, 1.0).clean, with_text.clean)
    assert torch.equal(guided_prediction(prior, z, 500, text, null, 0.0).clean, without.clean)
    pulled = guided_prediction(prior, z, 500, text, null, 3.0).noise
    assert torch.allclose(pulled, without.noise + 3 * (with_text.noise - without.noise))


def test_unknown_text_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bright"):
        _prior().embed("dark")

"""The mixture and the linear autoencoder of exact tests must themselves be exact."""

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.priors import GaussianMixturePrior, GaussianPrior, LinearCodecPrior, Prior

MEANS = torch.stack([torch.full((2, 2), -0.5), torch.full((2, 2), 0.5)]).double()
COVARIANCE = 0.01 * torch.eye(4, dtype=torch.float64)


def _mixture() -> GaussianMixturePrior:
    return GaussianMixturePrior(MEANS, {"": (0.3, 0.7), "low": (1.0, 0.0)}, COVARIANCE)


def _samples(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    chosen = (torch.rand(count, generator=generator) < 0.7).long()
    return MEANS[chosen] + 0.1 * torch.randn(count, 2, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("timestep", [300, 700])
def test_the_estimate_of_a_mixture_is_the_conditional_mean(timestep: int) -> None:
    """Against importance weights over many draws of the prior."""
    prior, samples = _mixture(), _samples(200_000)
    a = prior.alphas_cumprod[timestep]
    z = torch.tensor([[0.1, -0.2], [0.0, 0.3]], dtype=torch.float64) * a.sqrt() + 0.1
    away = (z - a.sqrt() * samples).flatten(1).square().sum(1)
    weights = torch.softmax(-away / (2 * (1 - a)), 0)
    expected = (weights[:, None, None] * samples).sum(0)
    noise, clean = prior.predict(z[None, None], timestep, prior.embed(""))
    assert torch.allclose(clean[0, 0], expected, atol=0.02)
    assert torch.allclose(a.sqrt() * clean + (1 - a).sqrt() * noise, z[None, None], atol=1e-10)


def test_a_text_that_weighs_one_component_alone_is_a_gaussian() -> None:
    prior, single = _mixture(), GaussianPrior({"": MEANS[0]}, COVARIANCE)
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([100, 500, 900])
    ours = prior.predict(z, steps, prior.embed(["low"] * 3)).clean
    assert torch.allclose(ours, single.predict(z, steps, single.embed([""] * 3)).clean)


@pytest.mark.parametrize("weights", [{"low": (1.0, 0.0)}, {"": (0.5, 0.6)}, {"": (1.5, -0.5)}])
def test_bad_weights_are_refused(weights: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ConfigError):
        GaussianMixturePrior(MEANS, weights, COVARIANCE)


def test_weights_are_as_many_as_means() -> None:
    with pytest.raises(GeometryError, match="expected 2 weights"):
        GaussianMixturePrior(MEANS, {"": (1.0,)}, COVARIANCE)


def test_a_linear_autoencoder_inverts_on_its_range() -> None:
    decoder = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64)).Q
    prior = LinearCodecPrior(_mixture(), decoder, (2, 3), (2, 2))
    assert isinstance(prior, Prior)
    assert isinstance(_mixture(), Prior)
    z = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    assert prior.decode(z).shape == (5, 1, 2, 3)
    assert torch.allclose(prior.encode(prior.decode(z)), z)
    inner = prior.latents.predict(z, 400, prior.embed([""] * 5))
    assert torch.equal(prior.predict(z, 400, prior.embed([""] * 5)).clean, inner.clean)


def test_a_decoder_that_does_not_fit_is_refused() -> None:
    with pytest.raises(GeometryError, match="orthonormal"):
        LinearCodecPrior(_mixture(), torch.ones(6, 4), (2, 3), (2, 2))
    with pytest.raises(GeometryError, match="expected a decoder of shape"):
        LinearCodecPrior(_mixture(), torch.eye(4), (2, 3), (2, 2))

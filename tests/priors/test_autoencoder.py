"""Encoding a decoded latent is exact, and white latent noise is white in the image."""

import pytest
import torch

from tests.tiny_prior import tiny_autoencoder
from treg_med.priors.autoencoder import NullSpaceAutoencoder


def test_encoder_inverts_the_decoder() -> None:
    model = tiny_autoencoder()
    z = torch.randn(2, 6, 8, 8)
    x = model.decode(z).sample
    assert (model.encode(x).latent_dist.mode() - z).abs().max() < 1e-5
    assert (model.null_coefficients(z).abs().max()) > 1e-3, (
        "the trained part must be active for this test to mean anything"
    )


def test_all_coefficients_give_the_identity() -> None:
    model = tiny_autoencoder(4, 16)
    x = torch.rand(1, 1, 16, 20)
    assert torch.allclose(model(x), x, atol=1e-5)


def test_latent_noise_keeps_its_standard_deviation_in_the_image() -> None:
    model = tiny_autoencoder(4, 16)
    z = torch.zeros(1, 16, 32, 32)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    change = model.decode(z + 0.3 * noise).sample - model.decode(z).sample
    assert float(change.std()) == pytest.approx(0.3, rel=0.03)


def test_decode_passes_gradients_and_saves(tmp_path) -> None:
    model = tiny_autoencoder()
    z = torch.randn(1, 6, 4, 4, requires_grad=True)
    model.decode(z).sample.sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()
    model.save_pretrained(tmp_path)
    again = NullSpaceAutoencoder.from_pretrained(tmp_path)
    assert again.config.scaling_factor == 1.7
    assert torch.equal(again.decode(z).sample, model.decode(z).sample)


def test_too_many_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1..16"):
        NullSpaceAutoencoder(4, 17)

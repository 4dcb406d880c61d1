"""Words limited to a region of the image or to a band of its frequencies."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.conformance.solvers import gaussian_prior, measurement
from treg_med.codec import ImageCodec
from treg_med.errors import ConfigError, GeometryError
from treg_med.guidance import Guidance, guided_prediction
from treg_med.priors import GaussianPrior
from treg_med.solvers import get_solver

SIDE = 32


def _prior() -> GaussianPrior:
    """The battery's prior, in which the text "dark" lowers everything."""
    known = gaussian_prior()
    return GaussianPrior({"": known.means[0], "dark": known.means[0] - 0.5}, known.covariance)


def _left() -> Tensor:
    region = torch.zeros(SIDE, SIDE)
    region[:, : SIDE // 2] = 1
    return region


def _change(guidance: Guidance) -> Tensor:
    """What the text changes in the clean estimate of a noisy latent."""
    prior = _prior()
    latent = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    text, null = prior.embed("dark"), prior.embed("")
    limit = guidance.limit(ImageCodec((SIDE, SIDE)))
    limited = guided_prediction(prior, latent, 600, text, null, 2.0, limit=limit)
    alpha = prior.alphas_cumprod[600]
    noisy = alpha.sqrt() * limited.clean + (1 - alpha).sqrt() * limited.noise
    assert torch.allclose(noisy.float(), latent, atol=1e-4), "noise and clean latent make up the noisy one"
    return (limited.clean - prior.predict(latent, 600, null).clean)[0, 0]


def test_words_change_nothing_outside_their_region() -> None:
    change = _change(Guidance(region=_left()))
    assert float(change[:, SIDE // 2 :].abs().max()) < 1e-5
    assert torch.allclose(change[:, : SIDE // 2], _change(Guidance(region=torch.ones(SIDE, SIDE)))[:, : SIDE // 2])


def test_words_change_only_the_frequencies_of_their_annulus() -> None:
    spectrum = torch.fft.fft2(_change(Guidance(region=_left(), annulus=(0.1, 0.3)))).abs()
    frequency = torch.fft.fftfreq(SIDE)
    radius = torch.hypot(frequency[:, None], frequency[None])
    inside = (radius >= 0.1) & (radius < 0.3)
    assert float(spectrum[~inside].max()) < 1e-3 * float(spectrum[inside].max())


@pytest.mark.parametrize("name", ["treg", "dds", "ldps"])
def test_a_reconstruction_with_words_in_a_region_changes_there(name: str) -> None:
    data, prior = measurement(), _prior()

    def image(text: str, guidance: Guidance) -> Tensor:
        solver = get_solver(name, steps=6, guidance_scale=guidance)
        return solver(data, prior=prior, text=text, generator=torch.Generator().manual_seed(2)).image

    def left_over_right(guidance: Guidance) -> float:
        change = (image("dark", guidance) - image("", guidance)).abs().square()
        return float(change[:, : SIDE // 2].sum() / change[:, SIDE // 2 :].sum())

    # Undersampled data carry a change to its aliases, so some of it ends up on the other side.
    limited = Guidance(scale=2.0, outside=2.0, region=_left())
    assert left_over_right(limited) > 1.3 * left_over_right(dataclasses.replace(limited, region=None))


def test_bad_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="region"):
        Guidance(region=torch.zeros(SIDE, SIDE))
    with pytest.raises(ConfigError, match="annulus"):
        Guidance(annulus=(0.3, 0.1))
    with pytest.raises(GeometryError, match="region of shape"):
        Guidance(region=torch.ones(8, 8)).limit(ImageCodec((SIDE, SIDE)))

"""What words alone say is drawn where it belongs, and the denoiser sees it."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.tiny_prior import random_word_map
from treg_med.errors import ConfigError, FormatError
from treg_med.priors import LatentPrior
from treg_med.priors.word_map import WordMap, placed
from treg_med.priors.word_map_unet import WordMapUNet
from treg_med.training.denoiser import build_denoiser, with_word_map


@pytest.fixture(scope="module")
def word_map() -> WordMap:
    """A map of six channels."""
    return random_word_map(6)


def test_maps_are_the_expected_latent_and_a_probability(word_map: WordMap) -> None:
    states = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        coefficients, logits = word_map.components(states)
        maps = word_map(states)
    assert maps.shape == (3, 7, 32, 32) and (maps[0] - maps[1]).abs().max() > 1e-3
    expected = word_map.mean + coefficients @ word_map.basis
    assert torch.allclose(maps[:, :6].flatten(1), expected, atol=1e-5)
    assert torch.allclose(maps[:, 6].flatten(1), torch.sigmoid(logits), atol=1e-6)


def test_an_untrained_map_says_the_mean_and_hardly_a_lesion() -> None:
    plain = WordMap(2, 8, side=4, components=3)
    plain.set_basis(torch.arange(32.0), torch.eye(32)[:3], torch.ones(3))
    maps = plain(torch.randn(2, 5, 8))
    assert torch.equal(maps[:, :2].flatten(1), torch.arange(32.0).expand(2, -1)) and maps[:, 2].max() < 0.02


def test_maps_keep_their_place_in_images_of_any_shape_and_in_crops() -> None:
    columns = torch.linspace(-1, 1, 65)[:-1] + 1 / 64
    maps = torch.stack([columns.expand(64, 64), columns.expand(64, 64).T])[None]
    assert torch.allclose(placed(maps, (64, 64)), maps, atol=1e-5)
    # The longer side spans the field of view; pixels stay square.
    wide = placed(maps, (32, 64))
    assert torch.allclose(wide, maps[:, :, 16:48], atol=1e-5)
    window = torch.tensor([[0.25, -0.5, 0.25, 0.5]])  # columns 32 to 48, rows 0 to 32
    assert torch.allclose(placed(maps, (32, 16), window), maps[:, :, :32, 32:48], atol=1e-5)


def test_a_denoiser_that_gets_a_map_ignores_it_until_it_is_trained(word_map: WordMap) -> None:
    torch.manual_seed(1)
    template = build_denoiser(6, (16, 32))
    plain = UNet2DConditionModel.from_config(template.config).eval()
    grown = with_word_map(plain, word_map).eval()
    z, states = torch.randn(2, 6, 16, 16), torch.randn(2, 7, 256)
    with torch.no_grad():
        before, after = (unet(z, 300, states).sample for unet in (plain, grown))
        assert torch.allclose(before, after, atol=1e-5)
        grown.conv_in.weight[:, 6:] += 0.1
        assert (grown(z, 300, states).sample - before).abs().max() > 1e-3
    assert not any(p.requires_grad for p in grown.word_map.parameters()) and grown.conv_in.weight.requires_grad
    with pytest.raises(FormatError, match="6 latent channels and text states of width 256, got 5 and 256"):
        with_word_map(grown, WordMap(5, 256))
    other = WordMap(6, 256)
    assert with_word_map(grown, other) is grown
    assert torch.equal(grown.word_map.mean, other.mean) and torch.equal(grown.word_map.value.weight, other.value.weight)


def test_saved_and_opened_it_predicts_the_same(tiny_prior_folder: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    assert isinstance(prior.unet, WordMapUNet)
    prior.unet.save_pretrained(tmp_path / "unet")
    again = WordMapUNet.from_pretrained(tmp_path / "unet").eval()
    z, states = torch.randn(1, 6, 16, 16), prior.embed("axial T1 with a left frontal tumour")
    window = torch.tensor([[0.5, 0.5, 0.25, 0.25]])
    with torch.no_grad():
        assert torch.equal(prior.unet(z, 300, states).sample, again(z, 300, states).sample)
        whole, crop = (prior.predict(z, 300, states, window=w).clean for w in (None, window))
    assert (whole - crop).abs().max() > 1e-4


def test_half_precision_and_gradients(tiny_prior_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder, dtype=torch.bfloat16)
    z = torch.randn(1, 6, 16, 16, requires_grad=True)
    prior.predict(z, 300, prior.embed("axial T1")).clean.sum().backward()
    assert z.grad is not None and bool(z.grad.isfinite().all())


def test_words_alone_are_an_expected_image_and_a_probability(tiny_prior_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    images, lesions = prior.words_alone(["axial T1", "coronal CT of the head with a left infarct"])
    assert images.shape == lesions.shape == (2, 256, 256)
    assert images.min() >= 0 and images.max() <= 1 and 0 < lesions.min() <= lesions.max() < 1
    plain = UNet2DConditionModel.from_config(prior.unet.config)
    without = LatentPrior(prior.vae, plain, prior.scheduler, prior.text_encoder, prior.tokenizer)
    with pytest.raises(ConfigError, match="word map"):
        without.words_alone("axial T1")

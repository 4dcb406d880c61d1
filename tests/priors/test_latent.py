"""LatentPrior: opens folders offline, assumes nothing, and keeps the prior contract."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from treg_med.errors import ConfigError, FormatError, ResourceError, UnsafeFileError
from treg_med.priors import LatentPrior, Prior


@pytest.fixture
def prior(tiny_prior_folder: Path) -> LatentPrior:
    """The tiny prior, opened."""
    return LatentPrior.from_pretrained(tiny_prior_folder)


def test_contract_and_sizes(prior: LatentPrior) -> None:
    assert isinstance(prior, Prior)
    assert prior.image_multiple == 8
    x = torch.rand(2, 1, 16, 24) * 2 - 1
    z = prior.encode(x)
    assert z.shape == (2, 6, 4, 6)
    assert torch.allclose(prior.encode(prior.decode(z)), z, atol=1e-4)
    assert "6 channels at 1/4" in repr(prior) and "LatentPrior" in prior._repr_html_()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_and_clean_recompose_the_latent(prior: LatentPrior, kind: str) -> None:
    prior = LatentPrior(prior.vae, prior.unet, prior.scheduler, prior.text_encoder, prior.tokenizer)
    prior.prediction_type = kind
    z = torch.randn(1, 6, 4, 4)
    with torch.no_grad():
        noise, clean = prior.predict(z, 400, prior.embed("axial FLAIR brain MRI"))
    a = prior.alphas_cumprod[400]
    assert torch.allclose(a.sqrt() * clean + (1 - a).sqrt() * noise, z, atol=1e-5)


def test_text_changes_the_prediction_and_empty_text_is_allowed(prior: LatentPrior) -> None:
    z = torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        said = prior.predict(z, 600, prior.embed(["glioma", ""])).clean
        other = prior.predict(z, 600, prior.embed(["axial FLAIR", ""])).clean
    assert not torch.allclose(said[0], other[0])
    assert torch.equal(said[1], other[1])


def test_long_text_is_cut_with_a_warning(prior: LatentPrior) -> None:
    text = "axial FLAIR brain MRI " * 40
    assert prior.embed(text).shape[1] == prior.max_tokens == 48
    assert any("first 48" in message for message in prior.text_warnings(text))
    assert prior.text_warnings("axial") == ()


def test_loads_with_the_network_blocked(tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the loader reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert LatentPrior.from_pretrained(tiny_prior_folder).max_tokens == 48


def test_three_channel_autoencoder_of_another_layout(prior: LatentPrior) -> None:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=2,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=0.3,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=256,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    grey = LatentPrior(vae, unet, DDIMScheduler(), prior.text_encoder, prior.tokenizer)
    x = torch.rand(1, 1, 16, 16)
    assert grey.image_multiple == 4 and grey.prediction_type == "epsilon"
    with torch.no_grad():
        z = grey.encode(x)
        raw = vae.encode(x.expand(-1, 3, -1, -1)).latent_dist.mode()
        assert torch.allclose(z, raw * 0.3, atol=1e-6)
        assert torch.allclose(grey.decode(z), vae.decode(raw).sample.mean(1, keepdim=True), atol=1e-5)


def test_missing_folder_missing_part_and_pickled_weights(tiny_prior_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="not there"):
        LatentPrior.from_pretrained(tmp_path / "none")
    with pytest.raises(ResourceError, match="vae"):
        LatentPrior.from_pretrained(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_prior_folder, copy)
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UnsafeFileError, match="unpickled"):
        LatentPrior.from_pretrained(copy)


def test_card_checksums_are_verified(tiny_prior_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_prior_folder, copy)
    card = copy / "prior.json"
    card.write_text(json.dumps({"sha256": {"unet/config.json": "0" * 64}}))
    with pytest.raises(FormatError, match="checksum"):
        LatentPrior.from_pretrained(copy)
    card.write_text(json.dumps({"sha256": {"../elsewhere": "0" * 64}}))
    with pytest.raises(UnsafeFileError, match="inside"):
        LatentPrior.from_pretrained(copy)
    card.write_text("{")
    with pytest.raises(FormatError, match="JSON"):
        LatentPrior.from_pretrained(copy)


def test_flow_schedulers_are_refused(prior: LatentPrior) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(ConfigError, match="alphas_cumprod"):
        LatentPrior(prior.vae, prior.unet, FlowMatchEulerDiscreteScheduler())


def test_states_of_many_texts_are_forgotten_and_come_back_equal(
    prior: LatentPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treg_med.priors.conditioning._MOST_TEXTS", 3)
    counted = []
    encoder = prior.text_encoder
    encoder.register_forward_hook(lambda *_: counted.append(1))
    texts = ["axial FLAIR", "glioma", "", "left", "right"]
    first = prior.embed(texts)
    assert len(counted) == 5
    prior.embed(texts[:2])
    assert len(counted) == 7  # five were too many to keep
    assert torch.equal(prior.embed(texts), first)
    assert len(counted) == 10  # two were kept

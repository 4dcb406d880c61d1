"""A tiny random prior folder in the Stable Diffusion layout, once per session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from treg_med.priors.autoencoder import NullSpaceAutoencoder
    from treg_med.priors.word_map import WordMap


def tiny_autoencoder(patch: int = 4, channels: int = 6) -> NullSpaceAutoencoder:
    """An autoencoder whose null-space decoder does something."""
    from treg_med.priors.autoencoder import NullSpaceAutoencoder, patch_principal_components

    torch.manual_seed(0)
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = NullSpaceAutoencoder(patch, channels, width=16, blocks=1, scaling_factor=1.7)
    model.set_basis(*patch_principal_components(images, patch))
    torch.nn.init.normal_(model.null_decoder[-1].weight, std=0.1)
    return model.eval()


def random_word_map(channels: int) -> WordMap:
    """A word map that says something."""
    from treg_med.priors.word_map import WordMap

    torch.manual_seed(0)
    model = WordMap(channels, 256)
    size = model.basis.shape
    model.set_basis(torch.randn(size[1]), torch.randn(size) / size[0] ** 0.5, torch.ones(size[0]))
    for layer in (model.latent, model.lesion):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vae/, unet/, scheduler/, text_encoder/ and tokenizer/ of random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from treg_med.training.denoiser import build_denoiser, build_scheduler, with_word_map
    from treg_med.training.text_encoder import build_tokenizer
    from treg_med.words.captions import SliceAttributes

    folder = tmp_path_factory.mktemp("prior")
    tiny_autoencoder().save_pretrained(folder / "vae")
    torch.manual_seed(0)
    denoiser = build_denoiser(6, (16, 32))
    with_word_map(denoiser, random_word_map(6)).save_pretrained(folder / "unet")
    build_scheduler().save_pretrained(folder / "scheduler")
    known = SliceAttributes(contrast="FLAIR", plane="axial", disease="glioma")
    tokenizer = build_tokenizer([known], vocabulary_size=400)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=48,
        eos_token_id=tokenizer.eos_token_id,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder

"""The denoiser's network, its noise schedule and its error on validation slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from treg_med.errors import FormatError
from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.priors.word_map import WordMap
from treg_med.priors.word_map_unet import WordMapUNet
from treg_med.training.slices import CaptionedSlices

__all__ = ["averaged_denoiser", "build_denoiser", "build_scheduler", "latent_error", "with_word_map"]

CHANNELS = (64, 128, 160, 192)
#: Of checkpoints that do not say.
_LAYERS = 1


def build_scheduler() -> DDIMScheduler:
    """Return the noise schedule that training and every solver share."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build_denoiser(latent_channels: int, channels: tuple[int, ...] = CHANNELS, layers: int = 1) -> WordMapUNet:
    """Build a small UNet for 64x64 latents, one level per entry of `channels`, each of `layers` residual blocks.

    Contrast, plane and skull stripping concern the whole slice: a pooled text state is added to the time embedding and
    so reaches every block. What words say of a place comes as a map; attention to single words is kept to the coarsest
    level.
    """
    levels = len(channels)
    return WordMapUNet(
        sample_size=64,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        cross_attention_dim=256,
        attention_head_dim=4,
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def with_word_map(denoiser: UNet2DConditionModel, word_map: WordMap) -> WordMapUNet:
    """Denoiser with the weights of a word map, frozen; one that had none ignores it until it is trained on.

    Raises
    ------
    FormatError
        If the two were made for other latents or texts.
    """
    wanted = (denoiser.config.in_channels, denoiser.config.cross_attention_dim)
    got = (word_map.config.latent_channels, word_map.config.text_width)
    if got != wanted:
        raise FormatError(
            f"expected a word map of {wanted[0]} latent channels and text states of width {wanted[1]}, "
            f"got {got[0]} and {got[1]}; train it again on these parts (treg-med train words)"
        )
    if isinstance(denoiser, WordMapUNet):
        model = denoiser
    else:
        model = WordMapUNet.from_config(denoiser.config)
        weights = denoiser.state_dict()
        blind = torch.zeros_like(model.conv_in.weight)
        blind[:, : denoiser.config.in_channels] = weights["conv_in.weight"]
        model.load_state_dict(weights | {"conv_in.weight": blind}, strict=False)
    model.word_map.load_state_dict(word_map.state_dict())
    model.word_map.requires_grad_(False)
    return model


def averaged_denoiser(checkpoint: Path) -> tuple[WordMapUNet, dict[str, Any]]:
    """Return the averaged weights of a checkpoint, also of a run that is still going on, and its numbers."""
    with safe_open(checkpoint, "pt") as file:
        numbers: dict[str, Any] = json.loads(file.metadata()["numbers"])
        # The average holds the parameters; buffers are the module's.
        stored = {
            name.removeprefix(kind): name
            for kind in ("module/", "ema/")
            for name in file.keys()  # noqa: SIM118
            if name.startswith(kind)
        }
        weights = {name: file.get_tensor(tensor) for name, tensor in stored.items()}
    channels, layers = tuple(numbers.get("channels", CHANNELS)), numbers.get("layers", _LAYERS)
    model = build_denoiser(weights["conv_out.weight"].shape[0], channels, layers)
    model.load_state_dict(weights)
    return model.eval(), numbers


@torch.no_grad()
def latent_error(
    model: UNet2DConditionModel,
    slices: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    states: Tensor,
    timestep: int,
    *,
    seed: int = 0,
) -> Tensor:
    """Squared error of the one-step clean estimate per slice, in units of the mean latent variance."""
    z = autoencoder.coefficients(slices.images.float() / 127.5 - 1) * autoencoder.config.scaling_factor
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    alpha = build_scheduler().alphas_cumprod[timestep]
    noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    errors = []
    for part, text, target in zip(noisy.split(8), states.split(8), z.split(8), strict=True):
        v = model(part, torch.full((len(part),), timestep), text).sample
        errors.append((alpha.sqrt() * part - (1 - alpha).sqrt() * v - target).pow(2).mean((1, 2, 3)))
    return torch.cat(errors)

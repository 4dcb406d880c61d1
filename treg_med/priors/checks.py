"""Whether the components of a prior fit together; each refusal names both numbers."""

from __future__ import annotations

import math
from typing import Any

from treg_med.errors import ConfigError, FormatError

__all__ = ["check_fit", "text_width"]


def check_fit(vae: Any, unet: Any, text_encoder: Any = None) -> None:
    """Check image channels, latent channels, text width and latent scale of a prior's components.

    Raises
    ------
    FormatError
        If two components do not fit together.
    ConfigError
        If a component is of a kind that is not supported, or the latent scale is not known.
    """
    _check_image_channels(vae)
    _check_latent_channels(vae, unet)
    _check_unconditional_inputs(unet)
    if text_encoder is not None:
        _check_text_width(unet, text_encoder)
    _check_scale(vae)


def text_width(unet: Any) -> int | None:
    """Width of the states that a denoiser's cross attention takes; None where it takes none."""
    width = unet.config.get("encoder_hid_dim") or unet.config.get("cross_attention_dim")
    return max(width) if isinstance(width, list | tuple) else width


def _check_image_channels(vae: Any) -> None:
    channels, out = (int(vae.config[key]) for key in ("in_channels", "out_channels"))
    if channels != out or channels not in (1, 3):
        raise FormatError(
            f"expected an autoencoder of grey (1) or colour (3) images in vae/, got in_channels {channels} and "
            f"out_channels {out}; bring an autoencoder with one or three channels"
        )


def _check_latent_channels(vae: Any, unet: Any) -> None:
    latent = int(vae.config.get("vq_embed_dim") or vae.config["latent_channels"])
    for key in ("in_channels", "out_channels"):
        if int(unet.config[key]) != latent:
            raise FormatError(
                f"expected {key} of unet/ to equal latent_channels of vae/, got {key} {unet.config[key]} and "
                f"latent_channels {latent}; bring the autoencoder the denoiser was trained with (inpainting and "
                "upscaling denoisers, and those that predict a variance, are not supported)"
            )


def _check_unconditional_inputs(unet: Any) -> None:
    asked = {key: unet.config.get(key) for key in ("num_class_embeds", "class_embed_type", "addition_embed_type")}
    # An embedding named "text" is made by the denoiser itself from the states it gets.
    wanted = [f"{key} {value!r}" for key, value in asked.items() if value not in (None, "text")]
    if wanted:
        raise ConfigError(
            f"expected a denoiser conditioned on a text, a vector or nothing, got {wanted[0]} in unet/config.json; "
            "class labels, sizes and pooled states are not supported"
        )


def _check_text_width(unet: Any, text_encoder: Any) -> None:
    wanted = text_width(unet)
    config = text_encoder.config
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    if wanted is None:
        raise FormatError(
            f"expected a denoiser that takes text states of width {width}, got one without cross attention in unet/; "
            "take text_encoder/ and tokenizer/ away"
        )
    if width != wanted:
        raise FormatError(
            f"expected hidden_size of text_encoder/ to equal cross_attention_dim of unet/, got hidden_size {width} and "
            f"cross_attention_dim {wanted}; bring the text encoder the denoiser was trained with"
        )


def _check_scale(vae: Any) -> None:
    scale, shift = vae.config.get("scaling_factor"), vae.config.get("shift_factor")
    standardised = vae.config.get("latents_mean") is not None and vae.config.get("latents_std") is not None
    if scale is None and not standardised:
        raise ConfigError(
            "expected scaling_factor in vae/config.json, got none; pass scaling_factor=... (1.0 where the latents are "
            "used as they are), or write it into a prior.json in the folder"
        )
    for key, value in (("scaling_factor", scale), ("shift_factor", shift)):
        if value is not None and not (math.isfinite(value) and (value > 0 or key == "shift_factor")):
            raise FormatError(
                f"expected a usable {key} in vae/config.json, got {value!r}; write the trained value there"
            )

"""MONAI's generative networks behind the interface of diffusers' ones: wrapped, their weights untouched."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

__all__ = ["MonaiAutoencoder", "MonaiDenoiser"]


class MonaiAutoencoder(nn.Module):
    r"""``monai.networks.nets.AutoencoderKL`` for images in [-1, 1].

    MONAI's networks take images of another range [a, b], so with its encoder E and decoder D

    .. math:: z = E(a + (b - a) (x + 1) / 2), \qquad x = 2 (D(z) - a) / (b - a) - 1 .

    Parameters
    ----------
    network
        The MONAI network, 2-D.
    config
        ``in_channels``, ``out_channels``, ``latent_channels``, ``block_out_channels``, ``scaling_factor`` and
        ``shift_factor``.
    image_range
        (a, b).
    """

    def __init__(self, network: nn.Module, config: dict[str, Any], image_range: tuple[float, float]) -> None:
        super().__init__()
        self.network: Any = network
        self.config = FrozenDict(config)
        self.image_range = image_range

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Distribution of the latent of an image ``(n, c, H, W)`` in [-1, 1]."""
        low, high = self.image_range
        mean, deviation = self.network.encode(low + (high - low) * (x + 1) / 2)
        return AutoencoderKLOutput(
            latent_dist=DiagonalGaussianDistribution(torch.cat([mean, 2 * deviation.log()], 1))
        )

    def decode(self, z: Tensor) -> DecoderOutput:
        """Image ``(n, c, H, W)`` of a latent, unclamped."""
        low, high = self.image_range
        return DecoderOutput(sample=2 * (self.network.decode(z) - low) / (high - low) - 1)


class MonaiDenoiser(nn.Module):
    """``monai.networks.nets.DiffusionModelUNet`` told a condition ``(n, tokens, width)``.

    The condition goes into the cross attention where the network has one. A vector condition ``(n, 1, width)`` may
    also, or only, be concatenated to the latent as constant channels, as Pinaya et al. do (arXiv 2209.07162).

    Parameters
    ----------
    network
        The MONAI network, 2-D.
    config
        ``in_channels`` (of the latent alone), ``out_channels``, ``block_out_channels`` and ``cross_attention_dim``.
    concatenated
        Number of constant channels that follow the latent's.
    """

    def __init__(self, network: nn.Module, config: dict[str, Any], concatenated: int = 0) -> None:
        super().__init__()
        self.network = network
        self.config = FrozenDict(config)
        self.concatenated = concatenated

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> UNet2DConditionOutput:
        """Output of the network for noisy latents ``(n, c, h, w)`` at timesteps ``(n,)``."""
        context = encoder_hidden_states if self.config["cross_attention_dim"] else None
        if self.concatenated:
            constant = encoder_hidden_states[:, 0, :, None, None].expand(-1, -1, *sample.shape[2:])
            sample = torch.cat([sample, constant], 1)
        return UNet2DConditionOutput(sample=self.network(sample, timesteps=timestep, context=context))

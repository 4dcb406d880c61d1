"""A patch autoencoder whose encoder is linear and orthonormal, so that encoding a decoded latent is exact."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NullSpaceAutoencoder", "patch_principal_components"]


def patch_principal_components(images: Tensor, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Principal components of image patches, by falling variance.

    Parameters
    ----------
    images : Tensor ``(n, 1, H, W)``
        H and W are multiples of ``patch_size`` (``f``).
    patch_size : int
        Side of the square patch in pixels.

    Returns
    -------
    tuple of Tensor
        Mean ``(f*f,)``, orthonormal basis ``(f*f, f*f)`` (columns) and standard deviations ``(f*f,)``.
    """
    patches = functional.pixel_unshuffle(images, patch_size).movedim(1, -1).reshape(-1, patch_size**2).double()
    mean = patches.mean(0)
    centred = patches - mean
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(centred))
    return mean.float(), basis.flip(1).float().contiguous(), variance.flip(0).clamp_min(1e-12).sqrt().float()


class _Residual(nn.Module):
    """Two 3x3 convolutions on a skip path; no normalisation, so crops and whole images behave alike."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        # A small last layer keeps a deep stack close to the identity at the start of training.
        nn.init.normal_(self.conv_out.weight, std=0.2 / (9 * width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(functional.silu(self.conv_in(functional.silu(x))))


class NullSpaceAutoencoder(ModelMixin, ConfigMixin, PeftAdapterMixin):
    r"""Orthonormal patch encoder with a trained null-space decoder.

    With the first K columns of an orthonormal basis ``[V, V_perp]`` of ``f x f`` patches ``p`` of mean ``m``,

    .. math:: E(x) = V^T (p - m), \qquad D(z) = V z + V_\perp g(z) + m, \qquad E(D(z)) = z .

    The network ``g`` (3x3 convolutions at the latent resolution) predicts only the coefficients that the encoder
    drops, so it can never contradict the latent. White noise in the latent is white noise of the same standard
    deviation in the image, which makes a data step in image space and the diffusion's noise level commensurate.
    ``E(D(z)) = z`` holds before any clamp of the image.

    Parameters
    ----------
    patch_size : int
        Side f of a patch in pixels; image sides must be multiples of it.
    latent_channels : int
        Number K of coefficients kept, at most ``f*f``.
    width, blocks : int
        Channels and residual blocks of ``g``.
    scaling_factor : float
        Multiplies the encoder's output to give the diffusion's latent (diffusers convention).
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 8,
        latent_channels: int = 48,
        width: int = 96,
        blocks: int = 4,
        scaling_factor: float = 1.0,
        in_channels: int = 1,
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        size = patch_size**2
        if not 0 < latent_channels <= size:
            raise ValueError(
                f"latent_channels must be in 1..{size} for {patch_size}x{patch_size} patches, got {latent_channels}"
            )
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(size))
        self.register_buffer("deviation", torch.ones(size))
        last = nn.Conv2d(width, max(size - latent_channels, 1), 3, padding=1)
        # Training starts from the linear decoder.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.null_decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1),
            *[_Residual(width) for _ in range(blocks)],
            nn.SiLU(),
            last,
        )

    def set_basis(self, mean: Tensor, basis: Tensor, deviation: Tensor) -> None:
        """Fix the patch basis (see `patch_principal_components`)."""
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.deviation.copy_(deviation)

    def coefficients(self, x: Tensor) -> Tensor:
        """E(x): coefficients ``(n, K, H/f, W/f)`` of an image ``(n, 1, H, W)``."""
        patches = functional.pixel_unshuffle(x, self.config.patch_size) - self.mean.view(1, -1, 1, 1)
        return functional.conv2d(patches, self.basis[:, : self.config.latent_channels].T[:, :, None, None])

    def null_coefficients(self, z: Tensor) -> Tensor:
        """Coefficients that the encoder drops, predicted from those it keeps."""
        kept = self.config.latent_channels
        if kept == self.config.patch_size**2:
            return z[:, :0]
        inner = self.null_decoder(z / self.deviation[:kept].view(1, -1, 1, 1))
        return inner * self.deviation[kept:].view(1, -1, 1, 1)

    def image(self, z: Tensor, null: Tensor | None = None) -> Tensor:
        """D(z): image ``(n, 1, H, W)`` of coefficients; ``null`` replaces the predicted ones that the encoder drops."""
        every = torch.cat([z, self.null_coefficients(z) if null is None else null], 1)
        patches = functional.conv2d(every, self.basis[:, :, None, None]) + self.mean.view(1, -1, 1, 1)
        return functional.pixel_shuffle(patches, self.config.patch_size)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode as diffusers' ``AutoencoderKL`` does: a distribution of zero width at E(x)."""
        z = self.coefficients(x)
        posterior = DiagonalGaussianDistribution(torch.cat([z, torch.zeros_like(z)], 1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode as diffusers' ``AutoencoderKL`` does: D(z)."""
        x = self.image(z)
        return DecoderOutput(sample=x) if return_dict else (x,)

    def forward(self, x: Tensor) -> Tensor:
        """Round trip D(E(x))."""
        return self.image(self.coefficients(x))

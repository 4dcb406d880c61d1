"""A linear autoencoder around an exact prior, so that latent methods meet a latent space in their exact tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from treg_med.errors import GeometryError
from treg_med.priors.base import Prediction, Prior

__all__ = ["LinearCodecPrior"]


class LinearCodecPrior:
    r"""Images :math:`D z` of an orthonormal decoder D, with latents from another prior; :math:`E = D^T`.

    Parameters
    ----------
    latents : Prior
        Prior on latents ``(n, 1, h, w)``, with the identity as autoencoder.
    decoder : Tensor ``(H*W, h*w)``
        Orthonormal columns.
    image_shape, latent_shape : tuple of int
        (H, W) and (h, w).

    Raises
    ------
    GeometryError
        If the decoder does not fit the shapes or its columns are not orthonormal.
    """

    image_multiple = 1

    def __init__(
        self, latents: Prior, decoder: Tensor, image_shape: tuple[int, int], latent_shape: tuple[int, int]
    ) -> None:
        wanted = (image_shape[0] * image_shape[1], latent_shape[0] * latent_shape[1])
        if tuple(decoder.shape) != wanted:
            raise GeometryError(f"expected a decoder of shape {wanted}, got {tuple(decoder.shape)}")
        if not torch.allclose(decoder.T @ decoder, torch.eye(wanted[1]).to(decoder), atol=1e-5):
            raise GeometryError("expected a decoder with orthonormal columns; take the Q of a QR decomposition")
        self.latents, self.decoder = latents, decoder
        self.image_shape, self.latent_shape = image_shape, latent_shape
        self.alphas_cumprod = latents.alphas_cumprod

    def encode(self, image: Tensor) -> Tensor:
        """Return latents ``(n, 1, h, w)`` of images ``(n, 1, H, W)``."""
        return (image.flatten(1) @ self.decoder.to(image)).reshape(-1, 1, *self.latent_shape)

    def decode(self, latent: Tensor) -> Tensor:
        """Return images ``(n, 1, H, W)`` of latents ``(n, 1, h, w)``."""
        return (latent.flatten(1) @ self.decoder.to(latent).T).reshape(-1, 1, *self.image_shape)

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Return the conditions of the prior on latents."""
        return self.latents.embed(text)

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Return those of the prior on latents."""
        return self.latents.text_warnings(text)

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        """Return the exact noise and clean estimates of the prior on latents."""
        return self.latents.predict(latent, timestep, condition)

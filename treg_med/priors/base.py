"""What a solver may ask of a prior; every prior keeps this contract.

Images are real ``(n, 1, H, W)`` in [-1, 1] (background -1), with H and W multiples of ``image_multiple``; latents are
``(n, c, h, w)`` in the scale the noise schedule expects. ``encode`` is deterministic, ``decode`` is differentiable and
unclamped, and no method switches gradients on or off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Prediction", "Prior"]


class Prediction(NamedTuple):
    """Noise and clean latent read off one noisy latent: ``z_t = sqrt(ab) clean + sqrt(1 - ab) noise``."""

    noise: Tensor
    clean: Tensor


@runtime_checkable
class Prior(Protocol):
    """A diffusion prior on latents of images."""

    image_multiple: int
    alphas_cumprod: Tensor

    def encode(self, image: Tensor) -> Tensor:
        """Latent of an image."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Image of a latent."""
        ...

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Condition of one or more texts, ``(n, ...)``; the empty text is the unconditional one."""
        ...

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Sentences a user should read before trusting what the prior makes of a text."""
        ...

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        """Noise and clean latent at one timestep of the training schedule, or at one per latent ``(n,)``."""
        ...

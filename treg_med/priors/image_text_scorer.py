"""A small joint space of images and texts: how well a sentence of a prior's text encoder fits a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from treg_med.codec import even_margins

if TYPE_CHECKING:
    from treg_med.guidance import JointScorer

__all__ = ["ImageTextScorer", "agreement", "shown_to_scorer"]

_GROUPS = 8
#: First and largest factor of a cosine in the loss of the training.
_FIRST_SCALE, _LARGEST_SCALE = 10.0, 50.0


class ImageTextScorer(ModelMixin, ConfigMixin):
    r"""Unit vectors of images and texts whose cosine says how well they agree; a `guidance.JointScorer`.

    .. math:: s(x, c) = \langle f(x), g(c) \rangle, \qquad \|f\| = \|g\| = 1

    f is a small convolutional network on the square field of view around the image, g reads the states of the text
    encoder at a few learned positions. It sees contrast, plane and coarse anatomy, and is no judge of small findings:
    the card of a prior says how often it told right words from wrong ones.

    Parameters
    ----------
    text_width : int
        Width of the text states.
    features : int
        Dimensions of the joint space; those of the text states suit the published adaptive negation.
    side : int
        Pixels along a side of what the network sees.
    channels : sequence of int
        Channels at a half, a quarter, ... of that resolution.
    readers, hidden : int
        Positions of the sentence that are attended to at once, and the width of the network behind them.

    Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, arXiv 2103.00020.
    """

    @register_to_config
    def __init__(
        self,
        text_width: int = 256,
        features: int = 256,
        side: int = 128,
        channels: Sequence[int] = (24, 48, 96, 128, 128),
        readers: int = 4,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        widths = [1, *channels]
        layers: list[nn.Module] = []
        for level, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(_GROUPS, b), nn.SiLU()]
            layers += [_Residual(b)] if level else []
        left = side // 2 ** len(channels)
        # A lesion has a side: the last map is read place by place.
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * left * left, features))
        self.norm = nn.LayerNorm(text_width)
        self.attention = nn.Linear(text_width, readers)
        self.value = nn.Linear(text_width, text_width)
        self.text = nn.Sequential(
            nn.Linear(readers * text_width, hidden), nn.SiLU(), nn.Linear(hidden, features)
        )
        self.scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    def image_features(self, image: Tensor) -> Tensor:
        """Return unit vectors ``(n, features)`` of prior images ``(n, 1, H, W)`` in [-1, 1]."""
        shown = shown_to_scorer(image.float(), self.config.side).to(self.dtype)
        return functional.normalize(self.image(shown).float(), dim=-1)

    def text_features(self, states: Tensor, text: str = "") -> Tensor:
        """Return unit vectors ``(n, features)`` of text states ``(n, tokens, width)``; the sentence is not needed."""
        words = self.norm(states.to(self.dtype))
        looked = self.attention(words).softmax(1).transpose(1, 2) @ self.value(words)
        return functional.normalize(self.text(looked.flatten(1)).float(), dim=-1)

    def sharpness(self) -> Tensor:
        """Return the learned factor of a cosine in the training's softmax."""
        return self.scale.exp().clamp(max=_LARGEST_SCALE)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(_GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def agreement(scorer: JointScorer, image: Tensor, states: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the cosines ``(n, texts)`` of prior images ``(n, 1, H, W)`` and texts with their states, one by one."""
    said = [scorer.text_features(state[None], text) for state, text in zip(states, texts, strict=True)]
    return scorer.image_features(image) @ torch.cat(said).T


def shown_to_scorer(image: Tensor, side: int) -> Tensor:
    """Return images ``(n, 1, H, W)`` in [-1, 1] as ``(n, 1, side, side)`` of the square around them."""
    height, width = image.shape[-2:]
    square = functional.pad(image.clamp(-1, 1), even_margins(height, width, max(height, width)), value=-1.0)
    return functional.interpolate(square, size=(side, side), mode="bilinear", antialias=True)

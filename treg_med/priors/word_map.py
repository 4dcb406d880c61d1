"""What words alone say: the expected latent and where a lesion is expected, as maps of the field of view."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["WordMap", "placed"]

#: Log odds of a lesion before anything is said.
_RARE = -4.0


class WordMap(ModelMixin, ConfigMixin):
    r"""The estimate that words allow before anything is measured.

    .. math::
        m(c) = \big(E[z \mid c],\; P(\text{lesion} \mid c)\big), \qquad
        E[z \mid c] \approx \mu + \sum_k \sigma_k f_k(c)\, b_k

    with the principal components b of the latents. The first map is what a perfect denoiser returns where nothing of
    the signal is left.

    Parameters
    ----------
    latent_channels : int
        Channels of the latent.
    text_width : int
        Width of the text states.
    side : int
        Pixels of the maps along a side of the field of view.
    components : int
        Principal components of the latents that are kept.
    readers, hidden : int
        Positions of the sentence that are attended to at once, and the width of the network behind them.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,
        text_width: int = 256,
        side: int = 32,
        components: int = 128,
        readers: int = 8,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        pixels = side * side
        self.register_buffer("mean", torch.zeros(latent_channels * pixels))
        self.register_buffer("basis", torch.zeros(components, latent_channels * pixels))
        self.register_buffer("deviation", torch.ones(components))
        self.norm = nn.LayerNorm(text_width)
        self.attention = nn.Linear(text_width, readers)
        self.value = nn.Linear(text_width, text_width)
        widths = [readers * text_width, hidden, hidden, hidden]
        self.network = nn.Sequential(
            *(layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.SiLU()))
        )
        self.latent = nn.Linear(hidden, components)
        self.lesion = nn.Linear(hidden, pixels)
        # Training starts from the mean latent and a rare lesion anywhere.
        nn.init.zeros_(self.latent.weight)
        nn.init.zeros_(self.latent.bias)
        nn.init.zeros_(self.lesion.weight)
        nn.init.constant_(self.lesion.bias, _RARE)

    def set_basis(self, mean: Tensor, basis: Tensor, deviation: Tensor) -> None:
        """Fix the principal components ``(k, c s s)``, their mean and standard deviations."""
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.deviation.copy_(deviation)

    def components(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients ``(n, k)`` of the expected latent and the logits of a lesion ``(n, s s)``.

        Parameters
        ----------
        states : Tensor ``(n, tokens, width)``
            Of the text encoder.
        """
        words = self.norm(states)
        looked = self.attention(words).softmax(1).transpose(1, 2) @ self.value(words)
        read = self.network(looked.flatten(1))
        return self.latent(read) * self.deviation, self.lesion(read)

    def forward(self, states: Tensor) -> Tensor:
        """Return the expected latent and the probability of a lesion as one, ``(n, c + 1, s, s)``."""
        coefficients, logits = self.components(states)
        side = self.config.side
        latent = (self.mean + coefficients @ self.basis).unflatten(1, (-1, side, side))
        return torch.cat([latent, logits.sigmoid().unflatten(1, (1, side, side))], 1)


def placed(maps: Tensor, size: tuple[int, int], window: Tensor | None = None) -> Tensor:
    """Lay maps ``(n, c, s, s)`` of the field of view on the grid of an image, ``(n, c, h, w)``.

    The field of view is the square around the image: its side is the image's longer one.

    Parameters
    ----------
    maps : Tensor
    size : tuple of int
        (h, w).
    window : Tensor ``(n, 4)``, optional
        What a crop shows: centre x, centre y, half width and half height, in halves of the field of view.
    """
    if window is None:
        longest = max(size)
        window = maps.new_tensor([[0.0, 0.0, size[1] / longest, size[0] / longest]]).expand(len(maps), -1)
    window = window.to(maps)
    theta = maps.new_zeros(len(maps), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = window[:, 2], window[:, 3], window[:, :2]
    grid = functional.affine_grid(theta, [len(maps), 1, *size], align_corners=False)
    return functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)

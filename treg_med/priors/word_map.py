"""What words alone say: the expected latent and where a lesion is expected, as maps of the field of view."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["WordMap", "placed"]

_HEADS = 4
_STAGES = 2


class WordMap(ModelMixin, ConfigMixin):
    r"""Positions that attend to words: the estimate that the words allow before anything is measured.

    .. math:: m(c) = \big(E[z \mid c],\; P(\text{lesion} \mid c)\big)

    Every cell of a coarse grid over the field of view has a learned query that reads the text states; convolutions
    draw the two maps from what the cells read. The first map is what a perfect denoiser returns where nothing of the
    signal is left.

    Parameters
    ----------
    latent_channels : int
        Channels of the latent.
    text_width : int
        Width of the text states.
    cells : int
        Cells along a side of the field of view; the maps have four times as many pixels.
    width, layers : int
        Of the attention.
    """

    @register_to_config
    def __init__(
        self, latent_channels: int = 12, text_width: int = 256, cells: int = 8, width: int = 128, layers: int = 2
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(cells * cells, width))
        self.words = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.readers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, _HEADS, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.side = cells * 2**_STAGES
        half = width // 2
        self.drawing = nn.Sequential(
            nn.Conv2d(width, half, 1),
            *(layer for _ in range(_STAGES) for layer in (nn.Conv2d(half, half, 3, padding=1), nn.SiLU(), _double())),
            nn.Conv2d(half, half // 2, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(half // 2, latent_channels + 1, 3, padding=1),
        )

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expected latent ``(n, c, s, s)`` and the logit of a lesion ``(n, 1, s, s)``.

        Parameters
        ----------
        states : Tensor ``(n, tokens, width)``
            Of the text encoder.
        """
        words = self.words(states)
        cells = self.queries.expand(len(words), -1, -1)
        for reader in self.readers:
            cells = reader(cells, words)
        side = self.config.cells
        drawn = self.drawing(cells.transpose(1, 2).unflatten(2, (side, side)))
        return drawn[:, :-1], drawn[:, -1:]

    def maps(self, states: Tensor) -> Tensor:
        """Return the expected latent and the probability of a lesion as one, ``(n, c + 1, s, s)``."""
        latent, lesion = self(states)
        return torch.cat([latent, lesion.sigmoid()], 1)


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


def _double() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="nearest")

"""A denoiser that sees what the words alone say beside the noisy latent."""

from __future__ import annotations

import functools
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, cat, nn

from treg_med.priors.word_map import WordMap, placed

__all__ = ["WordMapUNet"]


class WordMapUNet(UNet2DConditionModel):
    r"""diffusers' conditional UNet whose first convolution sees :math:`[z_t, m(c)]`, latent and word map.

    A lesion covers a hundredth of a slice, and a sentence tells its place by a conjunction of words. Left to the
    attention of a denoiser, whose loss is the rest of the slice, the conjunction is never found; as a map, it only has
    to be believed. The words reach the other layers as in any such UNet.

    Parameters
    ----------
    *args, **kwargs
        Of ``UNet2DConditionModel``; ``in_channels`` is that of the latent alone.
    """

    # The signature tells diffusers what a configuration holds.
    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        latent, width = self.config.in_channels, self.config.cross_attention_dim
        self.word_map = WordMap(latent, width)
        kernel = self.config.conv_in_kernel
        first = self.config.block_out_channels[0]
        self.conv_in = nn.Conv2d(2 * latent + 1, first, kernel, padding=(kernel - 1) // 2)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        *args: Any,
        window: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what ``UNet2DConditionModel.forward`` does.

        Parameters
        ----------
        sample : Tensor ``(n, c, h, w)``
        timestep : Tensor, float or int
        encoder_hidden_states : Tensor ``(n, tokens, width)``
        window : Tensor ``(n, 4)``, optional
            Where a crop lies in the field of view (see `placed`).
        *args, **kwargs
            Passed on.
        """
        size = (sample.shape[-2], sample.shape[-1])
        maps = placed(self.word_map(encoder_hidden_states), size, window)
        return super().forward(cat([sample, maps.to(sample)], 1), timestep, encoder_hidden_states, *args, **kwargs)

"""A deeper denoiser that starts out equal to a trained one."""

from __future__ import annotations

from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from treg_med.errors import ConfigError

__all__ = ["deepened"]

_UNet = TypeVar("_UNet", bound=UNet2DConditionModel)


def deepened(denoiser: _UNet, layers: int) -> _UNet:
    r"""Denoiser with `layers` residual blocks a level whose output equals that of `denoiser`.

    A new block adds :math:`F(h)` to its input *h* with the last layer of *F* at zero. On the way up its input is
    :math:`[h, s]` with the skip *s*; the projection past the block starts as :math:`[I, 0]`.

    Parameters
    ----------
    denoiser : UNet2DConditionModel
        Of one number of blocks for all levels.
    layers : int
        Blocks a level on the way down; one more on the way up.

    Raises
    ------
    ConfigError
        If the denoiser has more blocks, or not the same number at every level.

    References
    ----------
    T. Chen, I. Goodfellow, J. Shlens: Net2Net, arXiv 1511.05641.
    """
    has = denoiser.config.layers_per_block
    if has == layers:
        return denoiser
    if not isinstance(has, int) or has > layers:
        raise ConfigError(f"expected a denoiser of at most {layers} residual blocks a level to start from, got {has}")
    deep: _UNet = type(denoiser).from_config(denoiser.config, layers_per_block=layers)
    weights = denoiser.state_dict()
    for source, target in zip(denoiser.down_blocks, deep.down_blocks, strict=True):
        _fill(source, target, list(range(has)) + [None] * (layers - has))
    for source, target in zip(denoiser.up_blocks, deep.up_blocks, strict=True):
        # The first block takes what the level below gives, the last what the finer level left: both keep their places.
        _fill(source, target, list(range(has)) + [None] * (layers - has) + [has])
    blocks = ("down_blocks.", "up_blocks.")
    kept = {name: value for name, value in deep.state_dict().items() if name.startswith(blocks)}
    deep.load_state_dict(kept | {name: value for name, value in weights.items() if not name.startswith(blocks)})
    return deep


@torch.no_grad()
def _fill(source: nn.Module, target: nn.Module, places: list[int | None]) -> None:
    """Copy a level block by block; a place without a number becomes a block that changes nothing."""
    for kind in ("resnets", "attentions"):
        for new, place in zip(getattr(target, kind, ()), places, strict=False):
            if place is not None:
                new.load_state_dict(getattr(source, kind)[place].state_dict())
            elif kind == "attentions":
                _zero(new.proj_out)
            else:
                _zero(new.conv2)
                if new.conv_shortcut is not None:
                    width = new.conv_shortcut.weight.shape[0]
                    _zero(new.conv_shortcut)
                    new.conv_shortcut.weight[:, :width, 0, 0] = torch.eye(width)
    for kind in ("downsamplers", "upsamplers"):
        if getattr(target, kind, None) is not None:
            getattr(target, kind).load_state_dict(getattr(source, kind).state_dict())


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()

"""Between an image in its own units and what a prior eats, and back without loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.errors import GeometryError, NumericsError

__all__ = ["ImageCodec"]


@dataclass(frozen=True)
class ImageCodec:
    """Magnitude images ``(*batch, H, W)`` as prior images ``(n, 1, H', W')`` in [-1, 1], and exactly back.

    ``encoded = 2 scale magnitude - 1``, padded with background to multiples of ``multiple`` in image space. Values
    outside [0, 1 / scale] are carried unclamped, so ``decode(encode(m)) = m``.

    Parameters
    ----------
    shape : tuple of int
        (H, W) of the image.
    multiple : int
        Side lengths the prior accepts are multiples of this.
    scale : Tensor ``(*batch,)`` or float
        Brings the upper percentile of the magnitude to about one.

    Raises
    ------
    GeometryError
        If an image of another shape comes.
    NumericsError
        If the scale is not positive and finite.
    """

    shape: tuple[int, int]
    multiple: int = 1
    scale: Tensor | float = 1.0

    def __post_init__(self) -> None:
        scale = torch.as_tensor(self.scale)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise NumericsError(f"expected a positive finite scale, got {scale.tolist()}")

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels added at (left, right, top, bottom), as evenly as possible."""
        rows, columns = (-side % self.multiple for side in self.shape)
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2

    def encode(self, magnitude: Tensor) -> Tensor:
        """Return ``(n, 1, H', W')``; leading dimensions are flattened into n."""
        if tuple(magnitude.shape[-2:]) != tuple(self.shape):
            raise GeometryError(f"expected an image of shape {tuple(self.shape)}, got {tuple(magnitude.shape)}")
        scaled = magnitude * self._scale(magnitude) * 2 - 1
        return functional.pad(scaled.reshape(-1, 1, *self.shape), self.padding, value=-1.0)

    def decode(self, image: Tensor, batch: tuple[int, ...] = ()) -> Tensor:
        """Return the magnitude ``(*batch, H, W)`` of a prior image ``(n, 1, H', W')``."""
        left, _, top, _ = self.padding
        rows, columns = self.shape
        cropped = image[..., top : top + rows, left : left + columns].reshape(*batch, rows, columns)
        return (cropped + 1) / 2 / self._scale(cropped)

    def _scale(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.scale, dtype=like.dtype, device=like.device)[..., None, None]

"""Between an image in its own units and what a prior eats, and back without loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.errors import GeometryError, NumericsError

__all__ = ["ImageCodec", "even_margins"]


def even_margins(rows: int, columns: int, multiple: int) -> tuple[int, int, int, int]:
    """Pixels to add at (left, right, top, bottom), as evenly as possible, for sides that are multiples."""
    more_rows, more_columns = -rows % multiple, -columns % multiple
    return more_columns // 2, more_columns - more_columns // 2, more_rows // 2, more_rows - more_rows // 2


def _unturned(image: Tensor) -> Tensor:
    return image


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

    to_upright, from_upright : callable
        Turn an image ``(*batch, H, W)`` the way the prior saw its training images, head up, and back.

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
    to_upright: Callable[[Tensor], Tensor] = _unturned
    from_upright: Callable[[Tensor], Tensor] = _unturned

    def __post_init__(self) -> None:
        scale = torch.as_tensor(self.scale)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise NumericsError(f"expected a positive finite scale, got {scale.tolist()}")

    def encode(self, magnitude: Tensor) -> Tensor:
        """Return ``(n, 1, H', W')``, upright; leading dimensions are flattened into n."""
        if tuple(magnitude.shape[-2:]) != tuple(self.shape):
            raise GeometryError(
                f"expected an image of shape {tuple(self.shape)}, got {tuple(magnitude.shape)}"
            )
        return self.place(magnitude * self._scale(magnitude) * 2 - 1, fill=-1.0)

    def decode(self, image: Tensor, batch: tuple[int, ...] = ()) -> Tensor:
        """Return the magnitude ``(*batch, H, W)`` of a prior image ``(n, 1, H', W')``."""
        magnitude = self.crop(image, batch)
        return (magnitude + 1) / 2 / self._scale(magnitude)

    def place(self, image: Tensor, fill: float = 0.0) -> Tensor:
        """Turn an image ``(*batch, H, W)`` upright and pad it to ``(n, 1, H', W')``, values as they are."""
        upright = self.to_upright(image)
        rows, columns = upright.shape[-2:]
        margins = even_margins(rows, columns, self.multiple)
        return functional.pad(upright.reshape(-1, 1, rows, columns), margins, value=fill)

    def crop(self, image: Tensor, batch: tuple[int, ...] = ()) -> Tensor:
        """Undo `place`, ``(*batch, H, W)``; with a fill of zero the two are transposes of each other."""
        rows, columns = self.to_upright(torch.empty(self.shape)).shape
        left, _, top, _ = even_margins(rows, columns, self.multiple)
        return self.from_upright(image[..., top : top + rows, left : left + columns].reshape(*batch, rows, columns))

    def _scale(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.scale, dtype=like.dtype, device=like.device)[..., None, None]

"""Images with missing pixels, and the masks that say which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators.base import LinearOperator
from treg_med.operators.contract import checked_image_shape
from treg_med.operators.diagonalised import DiagonalisedOperator
from treg_med.operators.masks import mask_facts

__all__ = ["Inpainting", "box_mask", "random_pixel_mask"]


class Inpainting(DiagonalisedOperator):
    """Keep the pixels of an image where a mask is 1; the others are exactly 0.

    y = M x = A^H A x, on the full grid: images and measurements are ``(*batch, H, W)``.

    Parameters
    ----------
    mask
        ``(H, W)`` boolean or 0/1, nonzero where a pixel is measured.
    is_complex
        Whether images are complex.

    Raises
    ------
    GeometryError
        If the mask does not have two axes or keeps no pixel.
    ConfigError
        If the mask holds anything but 0 and 1.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, *, is_complex: bool = False) -> None:
        pattern = _checked_mask(mask)
        height, width = pattern.shape
        super().__init__((height, width), (height, width), is_complex=is_complex)
        self.register_buffer("mask", pattern, persistent=False)

    @property
    def measured(self) -> Tensor:
        """The mask."""
        return self.mask

    def facts(self) -> dict[str, Any]:
        """Return the mask: its size, samples and hash."""
        return {"mask": self._cached("mask facts", lambda: mask_facts(self.mask))}

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """The operator itself."""
        return self

    @property
    def gram(self) -> LinearOperator:
        """The operator itself: a projection."""
        return self

    def _forward(self, x: Tensor) -> Tensor:
        # A product would leave -0 and NaN where nothing is measured.
        return x.masked_fill(~self.mask, 0)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def _gains(self, dtype: torch.dtype) -> Tensor:
        return self.mask.to(dtype.to_real())

    def _analysed(self, y: Tensor) -> Tensor:
        return y

    def _synthesised(self, z: Tensor) -> Tensor:
        return z


def box_mask(
    shape: tuple[int, int], box: int | tuple[int, int], *, position: tuple[int, int] | None = None
) -> Tensor:
    """Return a mask with one rectangular hole.

    Parameters
    ----------
    shape
        ``(H, W)``.
    box
        Side (or height and width) of the hole in pixels.
    position
        Row and column of its upper left pixel (default: centred, from ``n // 2 - side // 2``).

    Returns
    -------
    ``(H, W)`` bool, True where a pixel is kept.

    Raises
    ------
    GeometryError
        If the hole does not lie within the image or leaves no pixel.
    """
    height, width = checked_image_shape(shape)
    rows, columns = (box, box) if isinstance(box, int) else box
    top, left = (height // 2 - rows // 2, width // 2 - columns // 2) if position is None else position
    mask = torch.ones(height, width, dtype=torch.bool)
    inside = 0 <= top <= height - rows and 0 <= left <= width - columns
    if min(rows, columns) < 1 or not inside or (rows, columns) == (height, width):
        raise GeometryError(
            f"a hole of {rows}x{columns} at ({top}, {left}) must lie within the image {height}x{width} "
            "and leave a part of it; make it smaller or move it"
        )
    mask[top : top + rows, left : left + columns] = False
    return mask


def random_pixel_mask(shape: tuple[int, int], missing: float, *, generator: torch.Generator) -> Tensor:
    """Return a mask with exactly ``round(missing H W)`` pixels removed, uniformly without replacement.

    Parameters
    ----------
    shape
        ``(H, W)``.
    missing
        Part of the pixels removed, in [0, 1).
    generator
        Source of randomness.

    Returns
    -------
    ``(H, W)`` bool, True where a pixel is kept.

    Raises
    ------
    ConfigError
        If ``missing`` is not in [0, 1) or leaves no pixel.
    """
    height, width = checked_image_shape(shape)
    n_pixels = height * width
    if not 0 <= missing < 1 or round(missing * n_pixels) == n_pixels:
        raise ConfigError(
            f"the missing part must lie in [0, 1) and leave a pixel of {height}x{width}, got {missing}"
        )
    order = torch.randperm(n_pixels, generator=generator, device=generator.device).cpu()
    return (order >= round(missing * n_pixels)).reshape(height, width)


def _checked_mask(mask: Tensor) -> Tensor:
    """Return an ``(H, W)`` boolean copy, or raise."""
    values = torch.as_tensor(mask)
    if values.ndim != 2:
        raise GeometryError(f"an inpainting mask must have shape (H, W), got {tuple(values.shape)}")
    if not bool(((values == 0) | (values == 1)).all()):
        raise ConfigError("an inpainting mask must hold only 0 and 1 (or booleans); weights are not supported")
    if not bool(values.any()):
        raise GeometryError(f"the mask {tuple(values.shape)} keeps no pixel; it needs at least one nonzero entry")
    return values != 0

"""Moving the grid of the autoencoder's patches under an image, so that its edges are nowhere for long."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from treg_med.priors.base import Prior

__all__ = ["Shift", "grid_shifts", "moved"]

Shift = tuple[int, int]


def grid_shifts(prior: Prior) -> Sequence[Shift]:
    """Return four offsets (rows, columns) that spread over a latent pixel's square of image pixels; none first.

    A prior that does not tell the side of that square has it stand still.
    """
    side = int(getattr(prior, "vae_factor", 1))
    spread = ((0, 0), (side // 2, side // 2), (side // 4, 3 * side // 4), (3 * side // 4, side // 4))
    return tuple(dict.fromkeys(spread))


def moved(image: Tensor, shift: Shift, direction: int = 1) -> Tensor:
    """Return images ``(n, 1, H, W)`` moved around by a shift, or back for a direction of -1."""
    return image if shift == (0, 0) else torch.roll(image, [direction * offset for offset in shift], (-2, -1))

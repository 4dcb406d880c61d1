r"""Smooth random fields: cubic B-splines on a coarse grid of random numbers.

.. math::
    f(x, y) = \sum_{ij} c_{ij}\, B(x - i)\, B(y - j), \qquad c_{ij} \sim N(0, 1)

Without unit, scaled to unit variance on average.

Unser M: Splines, IEEE Signal Process Mag 1999.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["random_field", "random_field_of_size"]

_SPREAD = 0.479  # sum of the squared weights of a cubic B-spline, averaged over a cell


@cache
def _weights(pixels: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """First of the four nodes that reach a pixel ``(pixels,)``, and their weights ``(4, pixels)``."""
    place = (np.arange(pixels) + 0.5) / pixels * cells
    first = np.minimum(place.astype(np.intp), cells - 1)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    return first, (weights / 6 / _SPREAD**0.5).astype(np.float32)


def _spread(nodes: NDArray[np.float32], pixels: int, cells: int) -> NDArray[np.float32]:
    """Interpolate the rows of ``(cells + 3, n)``, ``(pixels, n)``.

    Four products and no matrix product: the threads of a linear algebra library would wait for each other.
    """
    first, weights = _weights(pixels, cells)
    total = nodes[first] * weights[0][:, None]
    for step in range(1, 4):
        total += nodes[first + step] * weights[step][:, None]
    return total


def random_field(rng: np.random.Generator, size: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """Field ``(H, W)`` of unit variance with `cells` cells along the longer side."""
    along = [max(1, round(cells * side / max(size))) for side in size]
    nodes = rng.standard_normal((along[0] + 3, along[1] + 3), dtype=np.float32)
    across = np.ascontiguousarray(_spread(np.ascontiguousarray(nodes.T), size[1], along[1]).T)
    return _spread(across, size[0], along[0])


def random_field_of_size(
    rng: np.random.Generator, size: tuple[int, int], millimetres: float, pitch: float
) -> NDArray[np.float32]:
    """Field ``(H, W)`` of unit variance whose cells measure `millimetres`; pixels measure `pitch` mm."""
    return random_field(rng, size, max(1, round(max(size) * pitch / millimetres)))

"""A head of ellipses: its exact line integrals, and its image averaged over the pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Value, half axes, centre (x, y) and turn in degrees, in units of half the image: a head with a skull and inserts.
_ELLIPSES = (
    (1.0, 0.66, 0.88, 0.0, 0.0, 0.0),
    (-0.8, 0.62, 0.83, 0.0, -0.02, 0.0),
    (-0.2, 0.11, 0.30, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.40, -0.22, 0.0, 18.0),
    (0.15, 0.20, 0.24, 0.0, 0.35, 0.0),
    (0.2, 0.05, 0.05, 0.1, -0.45, 0.0),
)


def line_integrals(theta: Tensor, s: Tensor, radius: float) -> Tensor:
    """Return the integrals along x cos(theta) + y sin(theta) = s of the head in an image of a radius in mm."""
    total = torch.zeros(torch.broadcast_shapes(theta.shape, s.shape), dtype=torch.float64)
    for value, a, b, x, y, turn in _scaled(radius):
        along = theta - turn
        width = (a * along.cos()).square() + (b * along.sin()).square()
        offset = s - x * theta.cos() - y * theta.sin()
        total += value * 2 * a * b * (width - offset.square()).clamp_min(0).sqrt() / width
    return total


def image(size: int, pixel_size: float = 1.0, fine: int = 8) -> Tensor:
    """Return the head averaged over the pixels of a square image, float32."""
    n = size * fine
    place = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pixel_size / fine
    total = torch.zeros(n, n, dtype=torch.float64)
    for value, a, b, x, y, turn in _scaled(size / 2 * pixel_size):
        right, up = place[None, :] - x, -place[:, None] - y
        u = (right * math.cos(turn) + up * math.sin(turn)) / a
        v = (up * math.cos(turn) - right * math.sin(turn)) / b
        total += value * (u.square() + v.square() <= 1)
    return total.reshape(size, fine, size, fine).mean((1, 3)).float()


def _scaled(radius: float) -> list[tuple[float, float, float, float, float, float]]:
    return [
        (value, a * radius, b * radius, x * radius, y * radius, math.radians(turn))
        for value, a, b, x, y, turn in _ELLIPSES
    ]

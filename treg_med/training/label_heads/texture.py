r"""What a label map does not hold: texture inside a tissue, fat between muscles, the folds of the cerebellum.

Lines of fat lie where a smooth field f changes its sign; folds are planes through the left-right axis of the
cerebellum, every few mm along its rim:

.. math::
    w = e^{-(f / c)^2}, \qquad
    v = \max\big(0, \cos(n\theta + 2 f)\big)^4, \quad \theta = \operatorname{atan2}(z - z_0, y - y_0)

Fields ``(H, W)`` without unit, lengths in mm. The forms are schematic and not taken from a paper; the mixture of scales
follows Billot B et al., SynthSeg, Med Image Anal 2023, in spirit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from treg_med.training.label_heads.fields import random_field, random_field_of_size
from treg_med.training.label_heads.maps import HeadMap
from treg_med.training.label_heads.planes import Cut
from treg_med.training.label_heads.tissues import TISSUES

__all__ = ["fat_planes", "folia", "texture"]

_SCALES = (3.0, 8.0, 40.0)  # mm


def texture(size: tuple[int, int], pitch: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Sum of smooth fields of three scales, unit variance, ``(H, W)``; pixels measure `pitch` mm."""
    shares = rng.dirichlet((2.0, 2.0, 2.0)) ** 0.5
    total = np.zeros(size, dtype=np.float32)
    for share, scale in zip(shares, _SCALES, strict=True):
        total += np.float32(share) * random_field_of_size(rng, size, scale, pitch)
    return total


def fat_planes(size: tuple[int, int], pitch: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Share of fat between muscles, ``(H, W)``: lines that come and go."""
    field = random_field_of_size(rng, size, 12.0, pitch) + 0.25 * random_field_of_size(rng, size, 4.0, pitch)
    width = np.float32(rng.uniform(0.12, 0.3)) * np.exp(0.8 * random_field_of_size(rng, size, 18.0, pitch))
    here = np.clip(0.5 + 0.5 * random_field_of_size(rng, size, 14.0, pitch), 0, 1)
    return here * np.exp(-((field / width) ** 2))


def folia(cut: Cut, inner: NDArray[np.uint8], head: HeadMap, rng: np.random.Generator) -> NDArray[np.float32]:
    """Share of fluid between the folds of the cerebellum, ``(H, W)``, in the pixels whose tissue is its cortex."""
    depth, count, phase = rng.uniform(0.08, 0.35), rng.uniform(40, 64), rng.uniform(0, 2 * np.pi)
    bend, strength = (random_field(rng, cut.size, cells) for cells in (12, 16))
    fluid = np.zeros(cut.size, dtype=np.float32)
    cortex = inner == TISSUES.index("cerebellar grey")
    if cortex.any():
        points = cut.middle(cut.points)
        y, z = (points[axis][cortex] - np.float32(head.cerebellum[axis]) for axis in (1, 2))
        wave = np.cos(np.float32(count) * np.arctan2(z, y) + np.float32(phase) + 2.2 * bend[cortex])
        # Close to the axis the folds would be thinner than a pixel.
        away = np.clip(np.hypot(y, z) / 14 - 0.6, 0, 1)
        away *= np.clip(0.6 + 0.5 * strength[cortex], 0, 1)
        fluid[cortex] = np.float32(depth) * away * np.maximum(wave, 0) ** 4
    return fluid

r"""Tissues of a slice as an image: signal, texture, shading, blur, Rician noise.

.. math::
    I = \left|\, G_\sigma * \big(b\, (1 + a t)\, S\big) / s + n \,\right|

with the mean signal :math:`S` of the tissues in a pixel, texture :math:`t` and its strength :math:`a`, shading
:math:`b`, a Gaussian of the drawn resolution, :math:`s` the upper percentile of the head, and complex noise :math:`n`.
Everything is relative.

Gudbjartsson H, Patz S: The Rician distribution of noisy MRI data, Magn Reson Med 1995.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from treg_med.training.label_heads.fields import random_field, random_field_of_size
from treg_med.training.label_heads.maps import HeadMap
from treg_med.training.label_heads.planes import Cut
from treg_med.training.label_heads.texture import fat_planes, folia, texture
from treg_med.training.label_heads.tissues import BRAIN, FLUID, TEXTURE, TISSUES, draw_signal, index_of

__all__ = ["render"]

_UPPER_PERCENTILE = 0.997
_RESOLUTION = (0.8, 1.3)  # mm, full width at half maximum
_NOISE = (0.004, 0.035)
_LEAST_ISLAND = 25.0  # mm2


def render(
    head: HeadMap,
    cut: Cut,
    tissues: NDArray[np.uint8],
    covers: Sequence[tuple[NDArray[np.float32], str]],
    contrast: str,
    stripped: bool,
    rng: np.random.Generator,
) -> list[NDArray[np.float32]]:
    """Images in [0, 1], one for every lesion cover; all of them share every random number and the scale.

    Parameters
    ----------
    head : HeadMap
        Of which the slice is.
    cut : Cut
        The slice.
    tissues : NDArray[uint8] ``(S, 2H * 2W)``
        Tissue under its points.
    covers : sequence of (NDArray[float32] ``(H, W)``, str)
        Share of every pixel that a lesion fills, and the tissue that it is made of.
    contrast : str
        One of `CONTRASTS`.
    stripped : bool
        Whether only the brain and its inner fluid are left.
    rng : numpy.random.Generator
        Source of everything that is random.
    """
    size, pitch = cut.size, cut.pitch
    signal = draw_signal(contrast, rng)
    table = signal.copy()
    if stripped:  # the rim of a stripped brain holds fluid, not skull
        outside = np.setdiff1d(np.arange(len(TISSUES)), index_of(*BRAIN, *FLUID, "csf"))
        table[outside] = signal[TISSUES.index("csf")]
    healthy = cut.averaged(table[tissues])
    inner = cut.middle(tissues[len(tissues) // 2])
    for tissue, other, share in (
        ("soft", "fat", 0.0 if stripped else fat_planes(size, pitch, rng)),
        ("cerebellar grey", "csf", folia(cut, inner, head, rng)),
    ):
        difference = signal[TISSUES.index(other)] - signal[TISSUES.index(tissue)]
        healthy = healthy + difference * share * (inner == TISSUES.index(tissue))
    healthy = healthy * (1 + TEXTURE[inner] * texture(size, pitch, rng))
    shading = _shading(size, rng) * _end_of_coil(cut, head, rng)
    lesion_texture, severity = random_field_of_size(rng, size, 4.0, pitch), rng.uniform(0.9, 1.15)
    sigma = rng.uniform(*_RESOLUTION) / 2.355 / pitch
    level = np.float32(np.exp(rng.uniform(*np.log(_NOISE))))
    noise = rng.standard_normal((2, *size), dtype=np.float32) * level
    kept = _kept(inner, pitch, head.whole) if stripped else inner > 0

    scans = []
    for cover, kind in covers:
        white = signal[TISSUES.index("white")]
        lesion = white + severity * (signal[TISSUES.index(kind)] - white)
        lesion = lesion * (1 + TEXTURE[TISSUES.index(kind)] * lesion_texture)
        image = (healthy * (1 - cover) + lesion * cover) * shading
        scans.append(ndimage.gaussian_filter(image, sigma, truncate=3.0))
    # One scale for all, so that they are alike but for the lesion, and that of the brightest, so that it is not lost.
    scale = max(_upper(scan[kept]) for scan in scans)
    images = (np.hypot(scan / scale + noise[0], noise[1]) for scan in scans)
    return [np.clip(np.where(kept, image, 0) if stripped else image, 0, 1, dtype=np.float32) for image in images]


def _upper(values: NDArray[np.float32]) -> np.float32:
    """Upper percentile of the pixels of a head, above zero."""
    if not len(values):
        return np.float32(1.0)
    top = min(int(_UPPER_PERCENTILE * len(values)), len(values) - 1)
    return np.maximum(np.partition(values, top)[top], np.float32(1e-6))


def _shading(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Receive field: a smooth field, and coils about the head that see its rim better."""
    smooth = np.float32(rng.uniform(0.04, 0.16)) * random_field(rng, size, 2)
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    rim = np.float32(rng.uniform(0.0, 0.25)) * (x[None] ** 2 + y[:, None] ** 2)
    return np.exp(smooth + rim)


def _end_of_coil(cut: Cut, head: HeadMap, rng: np.random.Generator) -> NDArray[np.float32]:
    """Fade towards the end of the coil, which comes before the map is cut off at the neck."""
    drawn = rng.uniform(15, 35)  # mm
    if not head.whole:
        return np.ones(cut.size, dtype=np.float32)
    reach = np.float32(min(drawn, max(head.brain[0, 2] - head.head[0, 2], 2.0)))  # the brain is in the coil
    height = cut.middle(cut.points[2]) - np.float32(head.head[0, 2])
    t = np.clip(height / reach, 0, 1)
    return t * t * (3 - 2 * t)


def _kept(inner: NDArray[np.uint8], pitch: float, whole: bool) -> NDArray[np.bool_]:
    """Brain, its ventricles, and the fluid in its sulci: what lies within a smooth hull of the brain."""
    core = np.isin(inner, index_of(*BRAIN, *FLUID))
    hull = ndimage.gaussian_filter(core.astype(np.float32), 4.0 / pitch, truncate=2.5) > 0.45
    # A map of the brain alone has air where there is fluid.
    kept = core | (hull & (inner > 0) if whole else hull)
    # A cistern in the middle stays; crumbs beside the brain go.
    kept = ndimage.binary_fill_holes(kept)
    parts, _ = ndimage.label(kept)
    areas = np.bincount(parts.ravel()) * pitch**2
    areas[0] = 0
    return (areas >= _LEAST_ISLAND)[parts]

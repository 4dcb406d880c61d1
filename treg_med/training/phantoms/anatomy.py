"""Head phantoms as fractions of tissue per pixel: drawn by smooth ellipses, bent by random fields.

Coordinates run from -1 to 1, x to the right of the image and y up; y up is anterior in an axial image, superior in
the others. The patient's left is on the right of axial and coronal images (radiological convention); anterior is on
the left of sagittal ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LESION_TISSUE", "LOBES", "TISSUES", "Canvas", "draw_head", "random_field", "soft_ellipse"]

TISSUES = (
    "air", "fat", "bone", "csf", "grey", "white", "deep grey",
    "oedema", "tumour", "haemorrhage", "infarct", "cyst",
)  # fmt: skip
LESION_TISSUE = TISSUES[7:]


class _Structure(NamedTuple):
    """An ellipse in units of the brain's half axes; `paired` ones are drawn on both sides."""

    tissue: str
    x: float
    y: float
    half_width: float
    half_height: float
    turn: float = 0.0
    paired: bool = False


# Centres and sizes of the larger structures, schematic; they are scattered by a tenth and bent afterwards.
_STRUCTURES: dict[tuple[str, str], tuple[_Structure, ...]] = {
    ("axial", "lower"): (
        _Structure("white", 0.0, -0.12, 0.20, 0.17),
        _Structure("csf", 0.0, -0.30, 0.09, 0.06),
        _Structure("grey", 0.33, -0.52, 0.36, 0.30, 0.2, True),
        _Structure("white", 0.30, -0.50, 0.22, 0.15, 0.2, True),
        _Structure("csf", 0.0, 0.06, 0.14, 0.08),
    ),
    ("axial", "middle"): (
        _Structure("deep grey", 0.42, 0.10, 0.10, 0.24, -0.35, True),
        _Structure("deep grey", 0.17, -0.10, 0.13, 0.17, 0.3, True),
        _Structure("csf", 0.13, 0.33, 0.06, 0.17, -0.4, True),
        _Structure("deep grey", 0.22, 0.30, 0.06, 0.13, -0.4, True),
        _Structure("csf", 0.30, -0.42, 0.07, 0.20, 0.5, True),
        _Structure("csf", 0.0, -0.02, 0.025, 0.15),
    ),
    ("axial", "upper"): (
        _Structure("csf", 0.14, 0.05, 0.055, 0.36, 0.06, True),
        _Structure("white", 0.45, 0.0, 0.20, 0.55, 0.0, True),
    ),
    ("coronal", "middle"): (
        _Structure("csf", 0.17, 0.28, 0.16, 0.06, -0.5, True),
        _Structure("deep grey", 0.17, 0.02, 0.14, 0.13, 0.0, True),
        _Structure("deep grey", 0.45, 0.0, 0.09, 0.20, -0.2, True),
        _Structure("csf", 0.0, 0.02, 0.025, 0.14),
        _Structure("csf", 0.62, 0.02, 0.22, 0.035, 0.25, True),
        _Structure("white", 0.0, -0.55, 0.15, 0.40),
    ),
    ("sagittal", "middle"): (
        _Structure("csf", -0.02, 0.18, 0.36, 0.12),
        _Structure("white", -0.02, 0.30, 0.44, 0.08),
        _Structure("deep grey", -0.02, 0.05, 0.17, 0.11),
        _Structure("white", 0.12, -0.42, 0.11, 0.34, 0.15),
        _Structure("csf", 0.27, -0.45, 0.05, 0.12, -0.3),
        _Structure("grey", 0.50, -0.52, 0.26, 0.24),
        _Structure("white", 0.46, -0.50, 0.15, 0.11),
    ),
}

#: (plane, level, lobe) -> centre of the lobe for the structure on the right of the image, in brain half axes.
LOBES: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("axial", "lower"): {"temporal": (0.60, 0.02), "frontal": (0.25, 0.62)},
    ("axial", "middle"): {"frontal": (0.36, 0.55), "temporal": (0.68, -0.05), "occipital": (0.34, -0.66)},
    ("axial", "upper"): {"frontal": (0.36, 0.50), "parietal": (0.44, -0.30)},
    ("coronal", "middle"): {"parietal": (0.46, 0.52), "temporal": (0.58, -0.32)},
    ("sagittal", "middle"): {"frontal": (-0.55, 0.30), "parietal": (0.28, 0.58), "occipital": (0.66, 0.02)},
}


class Canvas:
    """Tissue fractions ``(n, tissues, H, W)`` that sum to one, painted in layers."""

    def __init__(self, count: int, size: tuple[int, int], device: torch.device) -> None:
        self.fractions = torch.zeros(count, len(TISSUES), *size, device=device)
        self.fractions[:, 0] = 1.0

    def paint(self, tissue: str, cover: Tensor) -> None:
        """Lay a tissue over what is there where `cover` ``(n, H, W)`` is one."""
        self.fractions *= 1 - cover[:, None]
        self.fractions[:, TISSUES.index(tissue)] += cover

    def fraction(self, tissue: str) -> Tensor:
        """Fraction of one tissue, ``(n, H, W)``."""
        return self.fractions[:, TISSUES.index(tissue)]


def random_field(
    count: int, size: tuple[int, int], cells: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Smooth noise ``(count, H, W)`` of unit variance at its nodes, `cells` of them along a side."""
    coarse = torch.randn(count, 1, cells, cells, generator=generator).to(device)
    return functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[:, 0]


def soft_ellipse(
    x: Tensor, y: Tensor, centre: tuple[Tensor, Tensor], half: tuple[Tensor, Tensor], turn: Tensor | float, edge: float
) -> Tensor:
    """Return one inside an ellipse and zero outside, with a soft border, ``(n, H, W)``; parameters ``(n, 1, 1)``."""
    turn = torch.as_tensor(turn)
    cos, sin = torch.cos(turn), torch.sin(turn)
    dx, dy = x - centre[0], y - centre[1]
    radius = (((cos * dx + sin * dy) / half[0]).square() + ((cos * dy - sin * dx) / half[1]).square()).sqrt()
    return torch.sigmoid((1 - radius) * torch.minimum(half[0], half[1]) / edge * 4)


class Head(NamedTuple):
    """A drawn head: canvas, brain mask ``(n, H, W)``, coordinates in brain half axes ``(n, H, W)`` and their scale."""

    canvas: Canvas
    brain: Tensor
    x: Tensor
    y: Tensor
    half_width: Tensor
    half_height: Tensor
    edge: float


def draw_head(
    count: int, size: tuple[int, int], plane: str, level: str, generator: torch.Generator, device: torch.device
) -> Head:
    """Draw `count` heads of one plane and level, without lesions."""

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, 1, 1, generator=generator)).to(device)

    def normal() -> Tensor:
        return torch.randn(count, 1, 1, generator=generator).to(device)

    rows, columns = size
    longest = max(size)
    y, x = torch.meshgrid(
        torch.linspace(1, -1, rows, device=device) * rows / longest,
        torch.linspace(-1, 1, columns, device=device) * columns / longest,
        indexing="ij",
    )
    turn = uniform(-0.12, 0.12)
    cos, sin = torch.cos(turn), torch.sin(turn)
    x, y = x - uniform(-0.05, 0.05), y - uniform(-0.05, 0.05)
    x, y = cos * x + sin * y, cos * y - sin * x
    x = (
        x
        + 0.02 * random_field(count, size, 5, generator, device)
        + 0.006 * random_field(count, size, 14, generator, device)
    )
    y = (
        y
        + 0.02 * random_field(count, size, 5, generator, device)
        + 0.006 * random_field(count, size, 14, generator, device)
    )
    edge = 2.0 / longest

    shrink = {"lower": 0.92, "middle": 1.0, "upper": 0.90}[level] if plane == "axial" else 1.0
    width = {"axial": 0.62, "coronal": 0.62, "sagittal": 0.74}[plane] * shrink * uniform(0.93, 1.06)
    height = {"axial": 0.76, "coronal": 0.62, "sagittal": 0.62}[plane] * shrink * uniform(0.93, 1.06)
    canvas = Canvas(count, size, device)
    zero = torch.zeros_like(width)
    for tissue, margin in (("fat", uniform(0.12, 0.17)), ("bone", uniform(0.08, 0.10)), ("csf", uniform(0.025, 0.05))):
        canvas.paint(tissue, soft_ellipse(x, y, (zero, zero), (width + margin, height + margin), 0.0, edge))
    brain = soft_ellipse(x, y, (zero, zero), (width, height), 0.0, edge)
    if plane == "coronal":  # the skull base rises towards the middle
        base = soft_ellipse(x, y, (zero, -1.05 * height), (0.45 * width, 0.35 * height), 0.0, edge)
        brain = brain * (1 - base)
    canvas.paint("grey", brain)

    # The cortex follows two folded contours: grey matter against white, and sulci that reach in from the rim.
    u, v = x / width, y / height
    radius = (u.square() + v.square()).sqrt()
    folds = random_field(count, size, 22, generator, device)
    white = torch.sigmoid(
        (0.84 - radius - 0.075 * folds - 0.03 * random_field(count, size, 44, generator, device)) / 0.012
    )
    canvas.paint("white", brain * white)
    depth = ((radius - 0.70) / 0.30).clamp(0, 1)
    sulci = torch.sigmoid((0.30 * depth * uniform(0.6, 1.4) - folds.sub(0.5).abs()) / 0.05)
    canvas.paint("csf", brain * sulci * (radius > 0.70))
    if plane != "sagittal":
        fissure = torch.sigmoid((0.018 * uniform(0.5, 1.5) - x.abs()) / (edge / 4)) * (
            v.abs() > 0.42 if plane == "axial" else v > 0.42
        )
        canvas.paint("csf", brain * fissure)

    ventricles = uniform(0.75, 1.45)
    for part in _STRUCTURES[plane, level]:
        swell = ventricles if part.tissue == "csf" else 1.0
        spread = 1 + 0.06 * normal()
        for direction in (1, -1) if part.paired else (1,):
            # A hemisphere is like the other but not its mirror image.
            centre = (
                direction * part.x * width * spread + 0.012 * normal(),
                part.y * height * spread + 0.012 * normal(),
            )
            half = (
                part.half_width * width * swell * (1 + 0.08 * normal()),
                part.half_height * height * swell * (1 + 0.08 * normal()),
            )
            canvas.paint(
                part.tissue,
                brain
                * soft_ellipse(
                    x, y, centre, (half[0].clamp_min(edge), half[1].clamp_min(edge)), direction * part.turn, edge
                ),
            )
    return Head(canvas, brain, x, y, width, height, edge)


def lesion_cover(head: Head, centre: tuple[Tensor, Tensor], radius: Tensor, generator: torch.Generator) -> Tensor:
    """Draw irregular blobs in the brain, ``(n, H, W)``; centre in brain half axes, radius in half fields of view."""
    count, rows, columns = head.x.shape
    bend = random_field(count, (rows, columns), 9, generator, head.x.device)
    stretch = (0.75 + 0.6 * torch.rand(count, 1, 1, generator=generator)).to(head.x.device)
    turn = (math.pi * torch.rand(count, 1, 1, generator=generator)).to(head.x.device)
    wobble = 1 + 0.18 * bend
    blob = soft_ellipse(
        head.x, head.y, (centre[0] * head.half_width, centre[1] * head.half_height),
        (radius * stretch.sqrt() * wobble, radius / stretch.sqrt() * wobble), turn, head.edge,
    )  # fmt: skip
    return blob * head.brain

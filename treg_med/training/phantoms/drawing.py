"""Draws phantoms: attributes, anatomy, lesion, signal, noise."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.training.phantoms.anatomy import LESION_TISSUE, LOBES, Head, draw_head, lesion_cover, random_field
from treg_med.training.phantoms.signal import tissue_signal
from treg_med.words.captions import SliceAttributes
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["PATIENT_LEFT_IS", "PhantomBatch", "draw_attributes", "draw_phantoms"]

#: Side of an axial or coronal image on which the patient's left lies: the radiological convention.
PATIENT_LEFT_IS = "right"

#: Lesion radius as a share of half the field of view; with 230 mm, 4 to 7, 7 to 12 and 13 to 21 mm.
_RADII = {"small": (0.035, 0.06), "medium": (0.065, 0.105), "large": (0.115, 0.18)}
#: Of twins of a head with a lesion on one side, the share with it on the other; the rest has none.
_OTHER_SIDE_SHARE = 0.6
_KINDS = ("T1w", "T1w+Gd", "T2w", "FLAIR", "PDw", "brain")


@dataclass(frozen=True)
class PhantomBatch:
    """Phantom slices.

    Attributes
    ----------
    images : Tensor ``(n, 1, H, W)``
        In [0, 1]; one is the upper percentile of the head (MR) or the window's upper end (CT).
    masks : Tensor ``(n, 1, H, W)``
        Lesion masks, 0 or 1.
    attributes : list of SliceAttributes
        Exact labels; `render_caption` makes sentences of them.
    """

    images: Tensor
    masks: Tensor
    attributes: list[SliceAttributes]


def draw_phantoms(
    count: int,
    size: tuple[int, int] = (256, 256),
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str = "cpu",
    lesion_share: float = 0.8,
    twins: bool = False,
) -> PhantomBatch:
    """Draw heads of random plane, level, contrast and lesion.

    Parameters
    ----------
    count : int
        Number of slices.
    size : tuple of int
        (H, W).
    generator : torch.Generator, optional
        CPU generator; the same one gives the same phantoms on every device, up to rounding.
    device : torch.device or str
        Where the images are computed.
    lesion_share : float
        Share of slices with a lesion; the others say that they have none.
    twins : bool
        Draw `count` slices more: the same heads with the lesion on the other side, without it, or with one where there
        was none. Everything else is pixel by pixel the same, up to the scale of the image.
    """
    generator = generator or torch.Generator().manual_seed(0)
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - pictures, not secrets
    attributes = [draw_attributes(rng, lesion_share) for _ in range(count)]
    state = generator.get_state()
    images, masks = _draw(attributes, size, generator, device)
    if twins:
        # How much is drawn at random does not depend on the lesion.
        generator.set_state(state)
        exchanged = [_twin(a, rng) for a in attributes]
        others = _draw(exchanged, size, generator, device)
        images, masks = (torch.cat(pair) for pair in zip((images, masks), others, strict=True))
        attributes = attributes + exchanged
    return PhantomBatch(images, masks, attributes)


def _draw(
    attributes: list[SliceAttributes], size: tuple[int, int], generator: torch.Generator, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Images and lesion masks ``(n, 1, H, W)``."""
    images = torch.zeros(len(attributes), 1, *size, device=device)
    masks = torch.zeros_like(images)
    views = [_view(a) for a in attributes]
    for view in sorted(set(views)):
        chosen = [i for i, v in enumerate(views) if v == view]
        head = draw_head(len(chosen), size, *view, generator, torch.device(device))
        mask = _add_lesions(head, [attributes[i] for i in chosen], view, generator)
        drawn = _render(head, [attributes[i] for i in chosen], generator)
        images[chosen], masks[chosen] = drawn[:, None], (mask > 0.5).float()[:, None]
    return images, masks


def draw_attributes(rng: random.Random, lesion_share: float = 0.8) -> SliceAttributes:
    """Draw what a phantom shows: contrast or CT window, plane, level, skull, and a lesion with its place."""
    kind = rng.choice(_KINDS)
    plane = rng.choices(("axial", "coronal", "sagittal"), (0.6, 0.25, 0.15))[0]
    level = rng.choice(("lower", "middle", "upper")) if plane == "axial" else "middle"
    known: dict[str, Any] = {"plane": plane, "origin": "simulated"}
    known |= {"level": level} if plane == "axial" else {}
    if kind == "brain":
        known |= {"modality": "CT", "window": "brain", "region": "head"}
    else:
        known |= {"modality": "MRI", "contrast": kind}
        known |= {"skull": "stripped"} if rng.random() < 0.4 else {}
    if rng.random() >= lesion_share:
        return SliceAttributes(**known, lesions="none")
    return SliceAttributes(**known, **_draw_lesion(plane, level, rng))


def _draw_lesion(plane: str, level: str, rng: random.Random) -> dict[str, Any]:
    """Draw what a lesion is and where it lies."""
    known = {
        "lesion": rng.choice(LESION_TISSUE),
        "size": rng.choices(tuple(_RADII), (0.25, 0.35, 0.40))[0],
        "lobe": rng.choice(tuple(LOBES[plane, level])),
    }
    return known | ({"side": rng.choice(("left", "right"))} if plane != "sagittal" else {})


def _view(a: SliceAttributes) -> tuple[str, str]:
    return a.plane, a.level if a.plane == "axial" else "middle"


def _twin(a: SliceAttributes, rng: random.Random) -> SliceAttributes:
    """Exchange the side of the lesion or whether there is one."""
    if a.lesions == "none":
        return replace(a, lesions=UNKNOWN, **_draw_lesion(*_view(a), rng))
    if a.side != UNKNOWN and rng.random() < _OTHER_SIDE_SHARE:
        return a.mirrored()
    return replace(a, lesions="none", lesion=UNKNOWN, size=UNKNOWN, lobe=UNKNOWN, side=UNKNOWN)


def _add_lesions(
    head: Head, attributes: list[SliceAttributes], view: tuple[str, str], generator: torch.Generator
) -> Tensor:
    """Paint the lesions and return their cover ``(n, H, W)``; a tumour lies in its oedema."""
    device = head.x.device
    count = len(attributes)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device).view(count, 1, 1)

    places = [LOBES[view].get(a.lobe, (0.0, 0.0)) for a in attributes]
    # Lobes are tabled on the right of the image, where the patient's left is.
    sides = [-1.0 if a.side == "right" else 1.0 for a in attributes]
    scatter = (0.07 * torch.randn(2, count, 1, 1, generator=generator)).to(device)
    centre = (
        column([x * side for (x, _), side in zip(places, sides, strict=True)]) + scatter[0],
        column([y for _, y in places]) + scatter[1],
    )
    low, high = (column([_RADII.get(a.size, (0.1, 0.1))[i] for a in attributes]) for i in (0, 1))
    radius = low + (high - low) * torch.rand(count, 1, 1, generator=generator).to(device)
    present = column([float(a.lesion in LESION_TISSUE) for a in attributes])
    core = lesion_cover(head, centre, radius, generator) * present
    halo = lesion_cover(head, centre, 1.45 * radius, generator) * column(
        [float(a.lesion == "tumour") for a in attributes]
    )
    head.canvas.paint("oedema", halo * (1 - head.canvas.fraction("csf")))
    for tissue in LESION_TISSUE:
        head.canvas.paint(tissue, core * column([float(a.lesion == tissue) for a in attributes]))
    return torch.maximum(core, halo)


def _render(head: Head, attributes: list[SliceAttributes], generator: torch.Generator) -> Tensor:
    """Signal, shading, blur and noise, scaled to [0, 1], ``(n, H, W)``."""
    device = head.x.device
    count, rows, columns = head.x.shape
    signal = torch.cat(
        [tissue_signal("brain" if a.modality == "CT" else a.contrast, 1, generator) for a in attributes]
    ).to(device)
    image = torch.einsum("nthw,nt->nhw", head.canvas.fractions, signal)
    texture = random_field(count, (rows, columns), max(rows, columns) // 3, generator, device)
    shading = random_field(count, (rows, columns), 4, generator, device)
    magnetic = torch.tensor([a.modality == "MRI" for a in attributes], device=device).view(count, 1, 1)
    image = image * (1 + 0.025 * texture) * torch.where(magnetic, 1 + 0.08 * shading, 1.0)
    stripped = torch.tensor([a.skull == "stripped" for a in attributes], device=device).view(count, 1, 1)
    image = torch.where(stripped, image * head.brain, image)
    image = (
        functional.avg_pool2d(functional.pad(image[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0] * 0.4
        + 0.6 * image
    )
    upper = torch.quantile(image.flatten(1)[:, ::7].float(), 0.99, dim=1).clamp_min(1e-6).view(count, 1, 1)
    image = torch.where(magnetic, image / upper, image)
    level = (0.025 * torch.rand(count, 1, 1, generator=generator)).to(device)
    noise = torch.randn(2, count, rows, columns, generator=generator).to(device) * level
    rician = ((image + noise[0]).square() + noise[1].square()).sqrt()
    return torch.where(magnetic & ~stripped, rician, (image + noise[0] * (image > 0))).clamp(0, 1)

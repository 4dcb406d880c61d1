"""Phantoms: labels are true, convention and contrasts are those of the field."""

import itertools

import pytest
import torch

from treg_med.training.phantoms import PATIENT_LEFT_IS, draw_phantoms
from treg_med.training.phantoms.anatomy import LOBES, TISSUES, draw_head
from treg_med.training.phantoms.signal import inversion_recovery, spin_echo, tissue_signal


@pytest.fixture(scope="module")
def batch():  # noqa: ANN201
    """Forty phantoms."""
    return draw_phantoms(40, (96, 96), torch.Generator().manual_seed(0))


def test_shapes_ranges_and_reproducibility(batch) -> None:  # noqa: ANN001
    assert batch.images.shape == batch.masks.shape == (40, 1, 96, 96) and len(batch.attributes) == 40
    assert 0 <= batch.images.min() and batch.images.max() <= 1 and bool(torch.isfinite(batch.images).all())
    again = draw_phantoms(40, (96, 96), torch.Generator().manual_seed(0))
    assert torch.equal(again.images, batch.images) and again.attributes == batch.attributes
    other = draw_phantoms(40, (96, 96), torch.Generator().manual_seed(1))
    assert not torch.equal(other.images, batch.images)


def test_a_lesion_is_where_its_caption_says_in_the_radiological_convention(batch) -> None:  # noqa: ANN001
    assert PATIENT_LEFT_IS == "right"
    columns = torch.linspace(-1, 1, 96)
    met = 0
    for image, mask, known in zip(batch.images, batch.masks, batch.attributes, strict=True):
        assert (mask.sum() > 0) == (known.lesion != "unspecified") == (known.lesions != "none")
        if known.side == "unspecified":
            continue
        head = columns[(image[0] > 0.08).any(0)]
        middle = (head.min() + head.max()) / 2
        centre = (mask[0].sum(0) * columns).sum() / mask.sum()
        assert (centre > middle) == (known.side == "left"), known
        met += 1
    assert met > 15


def test_frontal_lies_in_front_of_occipital(batch) -> None:  # noqa: ANN001
    for view, lobes in LOBES.items():
        if "occipital" in lobes and view[0] == "axial":
            assert lobes["frontal"][1] > 0 > lobes["occipital"][1]
    rows = torch.linspace(1, -1, 96)
    heights: dict[str, list[float]] = {"frontal": [], "parietal": [], "occipital": [], "temporal": []}
    for mask, known in zip(batch.masks, batch.attributes, strict=True):
        if known.lobe in heights and known.plane == "axial":
            heights[known.lobe].append(float((mask[0].sum(1) * rows).sum() / mask.sum()))
    assert min(heights["frontal"]) > max([*heights["parietal"], *heights["occipital"]])


def test_larger_words_make_larger_lesions() -> None:
    batch = draw_phantoms(60, (96, 96), torch.Generator().manual_seed(4), lesion_share=1.0)
    areas: dict[str, list[float]] = {"small": [], "medium": [], "large": []}
    for mask, known in zip(batch.masks, batch.attributes, strict=True):
        if known.lesion != "tumour":  # a tumour's mask holds its oedema too
            areas[known.size].append(float(mask.sum()))
    small, medium, large = (sum(values) / len(values) for values in areas.values())
    assert small < medium < large


def test_tissue_fractions_sum_to_one() -> None:
    for view in LOBES:
        head = draw_head(2, (64, 48), *view, torch.Generator().manual_seed(0), torch.device("cpu"))
        assert torch.allclose(head.canvas.fractions.sum(1), torch.ones(2, 64, 48), atol=1e-5)
        assert float(head.canvas.fraction("white").mean()) > 0.05


@pytest.mark.parametrize(
    ("kind", "brighter", "darker"),
    [
        ("T1w", "white", "grey"), ("T1w", "grey", "csf"), ("T1w", "fat", "white"),
        ("T2w", "csf", "grey"), ("T2w", "grey", "white"), ("T2w", "oedema", "grey"),
        ("FLAIR", "oedema", "grey"), ("FLAIR", "grey", "white"), ("FLAIR", "white", "csf"), ("FLAIR", "white", "cyst"),
        ("PDw", "grey", "white"), ("T1w+Gd", "tumour", "white"), ("T1w", "white", "tumour"),
        ("brain", "bone", "haemorrhage"), ("brain", "haemorrhage", "grey"), ("brain", "white", "csf"),
    ],
)  # fmt: skip
def test_contrasts(kind: str, brighter: str, darker: str) -> None:
    signal = tissue_signal(kind, 64, torch.Generator().manual_seed(0), scatter=0.02)
    assert (signal[:, TISSUES.index(brighter)] > signal[:, TISSUES.index(darker)]).float().mean() > 0.9


def test_signal_equations_at_their_limits() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    huge = torch.tensor(1e9, dtype=torch.float64)
    # Full recovery and no decay leave the proton density; no recovery leaves nothing.
    assert torch.allclose(spin_echo(one * 800, one * 80, one * 0.7, huge, one * 0), one * 0.7)
    assert float(spin_echo(one * 800, one * 80, one, one * 0, one)) == 0
    # TI = T1 ln 2 nulls a tissue when TR is long.
    t1 = one * 800
    assert float(inversion_recovery(t1, one * 80, one, huge, one, t1 * torch.log(one * 2))) == pytest.approx(
        0, abs=1e-9
    )


def test_any_size_and_an_empty_batch() -> None:
    for size, count in itertools.product(((40, 56), (33, 33)), (0, 1)):
        assert draw_phantoms(count, size, torch.Generator().manual_seed(0)).images.shape == (count, 1, *size)


def test_twins_differ_in_their_lesion_alone() -> None:
    batch = draw_phantoms(24, (96, 96), torch.Generator().manual_seed(2), twins=True)
    assert batch.images.shape == (48, 1, 96, 96) and len(batch.attributes) == 48
    exchanged = []
    for one, two in zip(batch.attributes[:24], batch.attributes[24:], strict=True):
        differ = {name for name, value in vars(one).items() if value != getattr(two, name)}
        exchanged.append(differ)
        assert differ == {"side"} or {"lesions", "lesion"} <= differ <= {"lesions", "lesion", "size", "side", "lobe"}
    assert {"side"} in exchanged and len({frozenset(d) for d in exchanged}) >= 2
    near = torch.nn.functional.max_pool2d(torch.maximum(batch.masks[:24], batch.masks[24:]), 9, 1, 4)
    change = (batch.images[:24] - batch.images[24:]).abs()
    # The brightest lesions move the upper percentile that both are scaled by.
    assert (change * (1 - near)).mean((1, 2, 3)).median() < 1e-6
    assert ((change * near).sum((1, 2, 3)) > 0).float().mean() > 0.9


def test_twins_leave_the_heads_as_they_are_without() -> None:
    alone, both = (draw_phantoms(5, (64, 64), torch.Generator().manual_seed(6), twins=t) for t in (False, True))
    assert torch.equal(alone.images, both.images[:5]) and alone.attributes == both.attributes[:5]

"""Heads with exact words: transplants of real lesions, and sources drawn by their shares."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_slices import write_strokes
from treg_med.errors import ConfigError
from treg_med.training.config import DrawnShares
from treg_med.training.drawn_heads import DrawnHeads
from treg_med.training.slices import CaptionedSlices
from treg_med.training.transplants import Transplants


@pytest.fixture
def strokes(tmp_path: Path) -> CaptionedSlices:
    """Six heads with a lesion of one side and six without."""
    path = write_strokes(
        tmp_path / "a.h5", 12, left_on="right", contrast=["FLAIR"] * 12, finding=["stroke_lesion"] * 12
    )
    slices = CaptionedSlices.load(path, "train")
    free = [dataclasses.replace(a, lesion="unspecified", side="unspecified", lesions="none") for a in slices.attributes]
    images, masks = slices.images.clone(), slices.masks.clone()
    images[6:, 0, 5:35, 5:35], masks[6:] = 101, 0
    return dataclasses.replace(slices, images=images, masks=masks, attributes=slices.attributes[:6] + free[6:])


def side_of(mask: torch.Tensor) -> str:
    """The patient's side of a mask ``(1, H, W)`` of a head in the middle of the image."""
    columns = (mask[0] > 0).nonzero()[:, 1].float()
    return "left" if float(columns.mean()) > (mask.shape[-1] - 1) / 2 else "right"


def test_transplanted_lesions_lie_where_their_words_say_and_twins_differ_there_only(strokes: CaptionedSlices) -> None:
    source = Transplants(strokes)
    assert len(source) == 6
    state = torch.get_rng_state()
    one, two = (source.draw(12, (40, 40), torch.Generator().manual_seed(0), twins=True) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.images, two.images) and one.attributes == two.attributes and len(one.attributes) == 24
    others = set()
    for i, (head, twin) in enumerate(zip(one.attributes[:12], one.attributes[12:], strict=True)):
        masks = one.masks[[i, i + 12]]
        assert head.lesion == "infarct" and head.disease == "stroke" and head.lesions == "unspecified"
        assert side_of(masks[0]) == head.side
        assert float(one.images[i][masks[0] > 0].mean()) > 1.3 * float(one.images[i][masks[0] == 0].median())
        changed = (one.images[i] - one.images[i + 12]).abs() > 0.02
        near = torch.nn.functional.max_pool2d(masks.amax(0)[None], 13, 1, 6)[0] > 0
        assert changed.any() and not (changed & ~near).any()
        if twin.lesions == "none":
            assert not masks[1].any() and twin.side == "unspecified"
        else:
            assert {head.side, twin.side} == {"left", "right"} and side_of(masks[1]) == twin.side
        others.add(twin.lesions)
    assert others == {"none", "unspecified"}


def test_only_slices_that_say_no_lesion_take_one(strokes: CaptionedSlices) -> None:
    assert not Transplants(strokes.take(range(6))) and not Transplants(strokes.take(range(6, 12)))


def test_sources_are_drawn_by_their_shares_and_phantoms_take_the_rest(strokes: CaptionedSlices) -> None:
    drawn = DrawnHeads(strokes, DrawnShares(transplants=0.5))
    batch = drawn(40, (40, 40), torch.Generator().manual_seed(0), twins=True)
    simulated = np.array([a.origin == "simulated" for a in batch.attributes])
    assert 12 <= simulated[:40].sum() <= 28 and np.array_equal(simulated[:40], simulated[40:])
    assert batch.images.shape == batch.masks.shape == (80, 1, 40, 40)
    alone = DrawnHeads(strokes.take(range(6)), DrawnShares(transplants=0.5))(4, (40, 40), torch.Generator())
    assert {a.origin for a in alone.attributes} == {"simulated"} and len(alone.images) == 4


def test_shares_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="at most one together, got 1.2"):
        DrawnShares(folder="labels", label_maps=0.6, transplants=0.6)
    with pytest.raises(ConfigError, match=r"folder of the label maps"):
        DrawnShares(label_maps=0.6)

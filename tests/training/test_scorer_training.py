"""The scorer learns to tell captions apart, the same again from the same seed, and counts no true sentence as wrong."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from treg_med.assessment.agreement import scorer_wins
from treg_med.training.batches import TextStates
from treg_med.training.config import ScorerSettings
from treg_med.training.scorer_training import _contradicts, _degraded, _facts, train_scorer
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import read_attributes

CAPTIONS = ("Axial T1-weighted brain MRI", "Axial FLAIR brain MRI")


@pytest.fixture(scope="module")
def slices(slice_file: Path) -> CaptionedSlices:
    """Blobs called T1w and, with a hole in the middle, FLAIR."""
    slices = CaptionedSlices.load(slice_file, "train")
    for row in range(len(slices)):
        slices.captions[row] = CAPTIONS[row % 2]
        slices.attributes[row] = read_attributes(CAPTIONS[row % 2])
    height, width = slices.images.shape[-2:]
    slices.images[1::2, :, height // 3 : -height // 3, width // 3 : -width // 3] = 0
    return slices


@pytest.fixture
def texts() -> Mock:
    """States that tell contrasts apart."""

    def states(captions: list[str]) -> torch.Tensor:
        words = (("flair", "fluid"), ("t1",), ("t2-weighted", "t2w"))
        said = [[float(any(w in c.lower() for w in alike)) for alike in words] for c in captions]
        return 4 * torch.nn.functional.pad(torch.tensor(said), (0, 32 - len(words)))[:, None]

    return Mock(spec=TextStates, side_effect=states, encoder=Mock(**{"config.hidden_size": 32}))


def test_right_words_win_after_training_and_the_seed_decides(slices: CaptionedSlices, texts: Mock) -> None:
    lines: list[str] = []
    settings = ScorerSettings(steps=60, batch=8, slices=60, phantoms=0)
    model = train_scorer(slices, texts, settings, log=lines.append)
    assert not model.training and any("step 50" in line for line in lines)
    wins = scorer_wins(model, texts, slices, ["contrast", "side"])
    assert list(wins) == ["contrast"]  # no caption says a side
    assert wins["contrast"].wins > 0.9
    again = train_scorer(slices, texts, settings, log=lines.append)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_a_scorer_prefers_whatever_it_sees_does_not_count_as_understanding(slices: CaptionedSlices) -> None:
    always_flair = Mock()
    always_flair.image_features = lambda image: torch.ones(len(image), 1)
    always_flair.text_features = lambda states, text: torch.tensor([[float("FLAIR" in text)]])
    wins = scorer_wins(always_flair, lambda texts: torch.zeros(len(texts), 1, 1), slices, ["contrast"])
    assert wins["contrast"].wins == pytest.approx(0.5, abs=0.01)


def test_only_a_sentence_that_contradicts_is_wrong() -> None:
    texts = (
        "axial T1w brain MRI, no lesion",
        "axial brain MRI",
        "coronal brain MRI",
        "axial T1w+Gd brain MRI",
        "axial T2w brain MRI with a large tumour in the left frontal lobe",
        "axial T2w brain MRI with a large tumour in the right frontal lobe",
    )
    facts = torch.tensor([_facts(read_attributes(text)) for text in texts])
    assert _contradicts(facts, facts).int().tolist() == [
        [0, 0, 1, 0, 1, 1],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 1],
        [0, 0, 1, 0, 1, 1],
        [1, 0, 1, 1, 0, 1],
        [1, 0, 1, 1, 1, 0],
    ]


def test_pictures_are_blurred_and_noised_within_their_range() -> None:
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    seen = _degraded(images, torch.Generator().manual_seed(1))
    assert torch.equal(images, before)
    assert seen.shape == images.shape and 0 <= seen.min() and seen.max() <= 1
    assert not torch.equal(seen, images)

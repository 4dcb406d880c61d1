"""The word map learns what captions say, the same again from the same seed, and tells what it explains."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.priors.word_map import WordMap
from treg_med.training.autoencoder import build_autoencoder
from treg_med.training.batches import TextStates
from treg_med.training.config import AutoencoderSettings, WordMapSettings
from treg_med.training.slices import CaptionedSlices
from treg_med.training.word_map_training import _reduced, explained_by_words, train_word_map
from treg_med.words.captions import read_attributes

WIDTH = 32


@pytest.fixture(scope="module")
def slices(slice_file: Path) -> CaptionedSlices:
    """Blobs called T1w and, a quarter as bright, FLAIR."""
    slices = CaptionedSlices.load(slice_file, "train")
    for row, caption in enumerate(("Axial T1-weighted brain MRI", "Axial FLAIR brain MRI") * 5):
        slices.captions[row], slices.attributes[row] = caption, read_attributes(caption)
    slices.images[1::2] //= 4
    return slices


@pytest.fixture(scope="module")
def autoencoder(slices: CaptionedSlices) -> NullSpaceAutoencoder:
    """An untrained autoencoder of the slices."""
    settings = AutoencoderSettings(patch_size=8, latent_channels=16, width=16, blocks=1)
    return build_autoencoder(slices, torch.Generator().manual_seed(0), settings).eval()


@pytest.fixture
def texts() -> Mock:
    """States that tell two contrasts apart, and left from right."""

    def states(captions: list[str]) -> torch.Tensor:
        words = (("flair", "fluid"), ("t1",), ("left", " l "), ("right", " r "))
        said = [[float(any(w in f" {c.lower()} " for w in alike)) for alike in words] for c in captions]
        return torch.nn.functional.pad(torch.tensor(said), (0, WIDTH - len(words)))[:, None]

    return Mock(spec=TextStates, side_effect=states, encoder=Mock(**{"config.hidden_size": WIDTH}))


def test_captions_explain_what_they_can(
    slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder, texts: Mock
) -> None:
    lines: list[str] = []
    settings = WordMapSettings(steps=60, batch=32, slices=100, phantoms=0, caption_dropout=0.2)
    untrained = explained_by_words(WordMap(16, WIDTH).eval(), slices, autoencoder, texts)
    model = train_word_map(slices, autoencoder, texts, settings, log=lines.append)
    assert not model.training and any("step 50" in line for line in lines)
    assert abs(untrained) < 0.1 < explained_by_words(model, slices, autoencoder, texts) < 1
    again = train_word_map(slices, autoencoder, texts, settings, log=lines.append)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_lesion_is_expected_where_the_words_put_it(
    slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder, texts: Mock
) -> None:
    settings = WordMapSettings(steps=80, batch=64, slices=10, phantoms=200, rate=3e-3)
    model = train_word_map(slices, autoencoder, texts, settings, log=lambda _: None)
    with torch.no_grad():
        left, right = model(texts(["phantom with a left lesion", "phantom with a right lesion"]))[:, -1]
    # The patient's left is on the right of the image.
    assert left[:, 16:].sum() > 1.5 * left[:, :16].sum()
    assert right[:, :16].sum() > 1.5 * right[:, 16:].sum()


def test_a_slice_that_is_not_square_lies_in_the_middle_of_its_field_of_view(autoencoder: NullSpaceAutoencoder) -> None:
    images = torch.ones(1, 1, 32, 64)
    latents, lesions = _reduced(autoencoder, images, images, 8)
    assert latents.shape == (1, 16 * 64)
    assert lesions.reshape(8, 8).sum(1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]

"""The word map learns what captions say, resumes exactly and tells what it explains."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModel

from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.priors.word_map import WordMap
from treg_med.training.autoencoder import build_autoencoder
from treg_med.training.batches import TextStates
from treg_med.training.captions import read_attributes
from treg_med.training.config import AutoencoderSettings, WordMapSettings
from treg_med.training.journal import Journal
from treg_med.training.slices import CaptionedSlices
from treg_med.training.word_map_examples import WordMapExamples
from treg_med.training.word_map_training import explained_by_words, train_word_map

SMALL = {"batch": 8, "slices": 8, "phantoms": 6, "warmup": 2}


@pytest.fixture(scope="module")
def slices(slice_file: Path) -> CaptionedSlices:
    """Blobs called T1w and, half as bright, FLAIR."""
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


@pytest.fixture(scope="module")
def texts(tiny_prior_folder: Path) -> TextStates:
    """Text states of the tiny prior."""
    encoder = CLIPTextModel.from_pretrained(tiny_prior_folder / "text_encoder").eval()
    return TextStates(AutoTokenizer.from_pretrained(tiny_prior_folder / "tokenizer"), encoder)


def test_examples_pair_phantoms_with_twins(slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder) -> None:
    settings = WordMapSettings(phantom_share=0.5, caption_dropout=0.0, **SMALL)
    examples = WordMapExamples(slices, autoencoder, 32, settings, torch.Generator().manual_seed(0))
    one, two = (examples.draw(torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.captions == two.captions and torch.equal(one.latents, two.latents)
    assert one.pairs == 2 and one.latents.shape == (8, 16, 32, 32) and one.lesions.shape == (8, 1, 32, 32)
    for head, twin in ((4, 6), (5, 7)):
        assert not torch.equal(one.lesions[head], one.lesions[twin])
        apart = (one.latents[head] != one.latents[twin]).any(0).float().mean()
        assert 0 < apart < 0.9  # one head


def test_captions_explain_what_they_can(
    slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder, tmp_path: Path
) -> None:
    def states(captions: list[str]) -> torch.Tensor:
        said = torch.tensor([float("FLAIR" in c) - float("T1" in c) for c in captions])
        return said.view(-1, 1, 1) * torch.linspace(-2, 2, 32)

    texts = Mock(side_effect=states, encoder=Mock(**{"config.hidden_size": 32}))
    settings = WordMapSettings(samples=800, phantom_share=0.0, lesion_weight=0.0, **{**SMALL, "slices": 100})
    untrained = explained_by_words(WordMap(16, 32).eval(), slices, autoencoder, texts)
    model = train_word_map(slices, autoencoder, texts, tmp_path / "w.ckpt", settings)
    assert model is not None and not model.training
    assert abs(untrained) < 0.1 < explained_by_words(model, slices, autoencoder, texts) < 1


def test_an_interrupted_run_equals_an_uninterrupted_one(
    slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder, texts: TextStates, tmp_path: Path
) -> None:
    def run(name: str, stop_at: int) -> WordMap | None:
        def progress(done: int, _total: int, _text: str) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        settings = WordMapSettings(samples=40, **SMALL)
        journal = Journal(None, lambda _: None, progress)
        return train_word_map(slices, autoencoder, texts, tmp_path / name, settings, journal=journal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("treg_med.training.word_map_training._SECONDS_BETWEEN_SAVES", -1.0)
        whole = run("whole", -1)
        with pytest.raises(KeyboardInterrupt):
            run("broken", 24)
        broken = run("broken", -1)
    assert whole is not None and broken is not None
    pairs = zip(whole.state_dict().values(), broken.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_time_limit_keeps_what_was_learned(
    slices: CaptionedSlices, autoencoder: NullSpaceAutoencoder, texts: TextStates, tmp_path: Path
) -> None:
    settings = WordMapSettings(samples=10_000, **SMALL)
    assert train_word_map(slices, autoencoder, texts, tmp_path / "w.ckpt", settings, seconds=0.0) is None
    assert any(name.startswith("ema/") for name in load_file(tmp_path / "w.ckpt"))

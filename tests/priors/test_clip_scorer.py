"""A CLIP folder as scorer of images and texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from treg_med.errors import ConfigError, ResourceError, UnsafeFileError
from treg_med.guidance import AdaptiveNegation, JointScorer
from treg_med.priors.clip_scorer import CLIPScorer
from treg_med.training.text_encoder import build_tokenizer
from treg_med.words.captions import SliceAttributes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer([SliceAttributes(contrast="FLAIR", plane="axial")], vocabulary_size=300)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 20}
    text = {**small, **sizes, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_features_are_those_of_the_model(folder: Path) -> None:
    scorer = CLIPScorer.from_pretrained(folder)
    assert isinstance(scorer, JointScorer)
    text = "axial FLAIR"
    tokens = scorer.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        output = scorer.model.text_model(**tokens)
        expected = torch.nn.functional.normalize(scorer.model.text_projection(output.pooler_output), dim=-1)
        ours = scorer.text_features(output.last_hidden_state, text)
    assert torch.allclose(ours, expected, atol=1e-6)
    image = torch.rand(2, 1, 40, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = scorer.image_features(image)
    assert features.shape == (2, 8)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))
    assert torch.allclose(scorer.image_features(image[:1]), features[:1], atol=1e-6)


def test_bounded_negation_with_a_clip_model_lowers_the_agreement(folder: Path) -> None:
    scorer = CLIPScorer.from_pretrained(folder)
    image = torch.zeros(1, 1, 32, 32)
    with torch.no_grad():
        tokens = scorer.tokenizer("glioma", return_tensors="pt", padding="max_length", max_length=20)
        states = scorer.model.text_model(tokens.input_ids).last_hidden_state
    negation = AdaptiveNegation(scorer, "glioma", "bounded", rate=1e-2, steps=10, radius=0.2)
    moved = negation(image, states)
    with torch.no_grad():
        shown = scorer.image_features(image)
        before, after = (float((shown * scorer.text_features(s, "glioma")).sum()) for s in (states, moved))
    assert after < before - 1e-3
    assert negation.drift[-1] <= 0.2001


def test_folders_and_widths_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="width 16"):
        CLIPScorer.from_pretrained(folder).text_features(torch.zeros(1, 5, 12), "glioma")
    with pytest.raises(ResourceError, match="config.json"):
        CLIPScorer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsafeFileError):
        CLIPScorer.from_pretrained(tmp_path)

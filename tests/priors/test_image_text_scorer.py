"""The scorer of images and texts keeps the contract of a joint scorer, and a prior carries and uses it."""

import shutil
from pathlib import Path

import pytest
import torch

from treg_med.errors import ConfigError, FormatError
from treg_med.guidance import AdaptiveNegation, JointScorer
from treg_med.priors import LatentPrior
from treg_med.priors.image_text_scorer import ImageTextScorer, shown_to_scorer

IMAGE = torch.rand(2, 1, 40, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def scorer() -> ImageTextScorer:
    """Random weights."""
    torch.manual_seed(0)
    return ImageTextScorer(side=32, channels=(8, 8)).eval()


def test_unit_vectors_of_images_of_any_size_and_of_texts(scorer: ImageTextScorer) -> None:
    assert isinstance(scorer, JointScorer)
    states = torch.randn(3, 48, 256, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for vectors in (scorer.image_features(IMAGE), scorer.text_features(states)):
            assert vectors.shape[1] == 256
            assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-5)
        assert torch.allclose(scorer.image_features(IMAGE)[:1], scorer.image_features(IMAGE[:1]), atol=1e-6)


def test_the_field_of_view_is_the_square_around_the_image() -> None:
    shown = shown_to_scorer(torch.full((1, 1, 32, 64), 3.0), 16)
    assert shown.shape == (1, 1, 16, 16)
    assert shown[0, 0, 5:11].min() == 1.0  # what leaves the range is cut
    assert shown[0, 0, :3].max() == -1.0


def test_bounded_negation_moves_away_from_the_image(scorer: ImageTextScorer) -> None:
    null = torch.randn(1, 48, 256, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1)
    negation = AdaptiveNegation(scorer, mode="bounded", rate=1e-2, steps=10, radius=0.1)
    moved = negation(IMAGE, null)
    with torch.no_grad():
        before, after = (
            (scorer.image_features(IMAGE) * scorer.text_features(s)).sum(1) for s in (null, moved)
        )
    assert (after < before).all()
    assert 0 < negation.drift[0] <= 0.1 + 1e-6


def test_a_prior_opens_its_scorer_and_compares_texts(
    scorer: ImageTextScorer, tiny_prior_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_prior_folder, tmp_path / "prior")
    plain = LatentPrior.from_pretrained(folder)
    assert plain.scorer is None
    with pytest.raises(ConfigError, match="scorer"):
        plain.agreement(IMAGE[0], "axial FLAIR")
    scorer.save_pretrained(folder / "words_and_pictures")  # found by its class
    prior = LatentPrior.from_pretrained(folder)
    texts = ["axial FLAIR", "glioma", "axial FLAIR"]
    found = prior.agreement((IMAGE + 1) / 2, texts)
    assert found.shape == (2, 1, 3)
    assert torch.equal(found[..., 0], found[..., 2]) and not torch.equal(found[..., 0], found[..., 1])
    with torch.no_grad():
        expected = scorer.image_features(IMAGE) @ scorer.text_features(prior.embed("glioma"))[0]
    assert torch.allclose(found[:, 0, 1], expected, atol=1e-5)
    assert prior.agreement((IMAGE[0, 0] + 1) / 2, "glioma").shape == (1,)
    assert AdaptiveNegation.of(prior, "", "treg", rate=1e-3, steps=10) is not None


def test_a_scorer_with_missing_weights_is_refused(
    scorer: ImageTextScorer, tiny_prior_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_prior_folder, tmp_path / "prior")
    scorer.save_pretrained(folder / "scorer")
    (file,) = (folder / "scorer").glob("*.safetensors")
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if name != "value.weight"}, file)
    with pytest.raises(FormatError, match="value.weight"):
        LatentPrior.from_pretrained(folder)

"""The card is changed completely or not at all, and warns from then on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from treg_med.assessment.card import record_understanding
from treg_med.data.atomic import StagedFiles
from treg_med.errors import FormatError, ResourceError
from treg_med.priors import LatentPrior

SIDE = {"side": {"wins": 0.52, "slices": 96, "interval": [0.42, 0.62], "follows": False}}


@pytest.fixture
def folder(tiny_prior_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny prior with a card."""
    copy = tmp_path / "prior"
    shutil.copytree(tiny_prior_folder, copy)
    (copy / "prior.json").write_text(json.dumps({"summary": "tiny", "words": ["left", "brain"]}))
    return copy


def test_recorded_words_are_warned_of(folder: Path) -> None:
    assert LatentPrior.from_pretrained(folder).text_warnings("left brain") == ()
    path = record_understanding(folder, SIDE)
    card = json.loads(path.read_text())
    assert card == {"summary": "tiny", "words": ["left", "brain"], "understanding": SIDE}
    assert LatentPrior.from_pretrained(folder).text_warnings("left brain") == (
        "the prior is known not to follow words about side (right beats wrong on 52 % of 96 slices)",
    )
    assert sorted(p.name for p in folder.glob("*prior.json*")) == ["prior.json"]


def test_a_folder_without_a_card_gets_one(folder: Path) -> None:
    (folder / "prior.json").unlink()
    record_understanding(folder, SIDE)
    assert json.loads((folder / "prior.json").read_text()) == {"format": 1, "understanding": SIDE}


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_a_card_that_cannot_be_read_is_kept(folder: Path, content: str) -> None:
    (folder / "prior.json").write_text(content)
    with pytest.raises(FormatError, match="JSON"):
        record_understanding(folder, SIDE)
    assert (folder / "prior.json").read_text() == content


def test_a_failing_disk_keeps_the_old_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "prior.json").read_text()

    def full(self: StagedFiles) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(StagedFiles, "commit", full)
    with pytest.raises(ResourceError, match="no space"):
        record_understanding(folder, SIDE)
    assert (folder / "prior.json").read_text() == before
    assert not list(folder.glob(".prior.json*"))


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="folder"):
        record_understanding(tmp_path / "nowhere", SIDE)

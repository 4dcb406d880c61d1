"""The whole report, of the tiny prior: page, numbers, command."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.report.scorer import tiny_scorer
from treg_med.assessment import build
from treg_med.assessment.build import PriorReport, ReportSettings, build_report
from treg_med.assessment.card import record_understanding
from treg_med.assessment.one_step import usable_levels
from treg_med.assessment.slice_sets import phantom_slices, real_slices
from treg_med.assessment.unseen_words import general_words
from treg_med.cli import app
from treg_med.data import simulate_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.errors import ConfigError, FormatError
from treg_med.notice import RESEARCH_ONLY
from treg_med.priors import LatentPrior
from treg_med.report.html import render

SIZE = 32
TINY = ReportSettings(
    round_trip_slices=4,
    error_slices=2,
    error_levels=(100, 900),
    word_slices=8,
    word_phantoms=8,
    word_levels=(500, 999),
    pair_noises=2,
    pair_steps=2,
    gain_slices=2,
    tuning_slices=2,
    gain_levels=(300,),
    oracle_slices=1,
    oracle_steps=2,
    audit_samples=4,
    audit_steps=2,
    phantom_size=SIZE,
)


@pytest.fixture(scope="module")
def slices_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms stored as real slices are, some of unknown subject, some for training."""
    drawn = phantom_slices(12, SIZE, 8, torch.Generator().manual_seed(4), 0.5)
    path = tmp_path_factory.mktemp("slices") / "slices.h5"
    with h5py.File(path, "w") as file:
        file["images"] = drawn.images[:, 0].numpy()
        file["captions"] = drawn.captions
        file["split"] = ["train"] * 2 + ["val"] * 10
        file["subject"] = ["unknown:7" if i == 5 else f"person_{i % 2}" for i in range(12)]
    return path


@pytest.fixture(scope="module")
def report(tiny_prior_folder: Path, slices_file: Path) -> PriorReport:
    return build_report(LatentPrior.from_pretrained(tiny_prior_folder), slices_file, settings=TINY)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_page_is_whole_and_refers_to_nothing_outside(report: PriorReport) -> None:
    page = render(report)
    for letter in "abcdefg":
        assert f"<h2>{letter}. " in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 12 and "What words alone say" in page
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert page.count(RESEARCH_ONLY) >= 2
    assert {verdict.name for verdict in report.verdicts if verdict.name in page} == {v.name for v in report.verdicts}
    assert page.count("not met") >= sum(not v.met for v in report.verdicts) > 0


def test_numbers_are_all_there_and_are_json(report: PriorReport) -> None:
    numbers = json.loads(json.dumps(report.numbers(), allow_nan=False))
    assert [trip["source"] for trip in numbers["round_trips"]] == ["val slices", "phantoms"]
    assert numbers["slices"]["val slices"].startswith("9 of 32 x 32")
    tested = {(t["attribute"], t["source"], t["region"]) for t in numbers["words"]}
    assert {a for a, s, _ in tested if s == "val slices"} == {"contrast", "plane", "finding", "side"}
    assert {a for a, s, _ in tested if s == "phantoms"} == {"contrast", "plane", "finding", "side"}
    assert ("side", "phantoms", "around the lesion") in tested
    assert set(numbers["understanding"]) == {t["attribute"] for t in numbers["words"] if t["two_sided"]}
    assert {"contrast", "finding", "side"} <= set(numbers["understanding"])
    assert all(len(t["rows"]) >= t["overall"]["slices"] for t in numbers["words"])
    assert numbers["understanding"]["contrast"]["source"] == "val slices"
    assert set(numbers["understanding"]["side"]) >= {"wins", "slices", "interval", "follows"}
    assert numbers["pairs"]["correlation"]["T1w"]["T1w"] == pytest.approx(1)
    assert numbers["gain"]["levels"][0]["bar_db"] == 2.0
    assert numbers["oracle"]["timestep"] == 500
    memorisation = numbers["memorisation"]
    assert (memorisation["samples"], memorisation["validation"], memorisation["training"]) == (4, 4, 2)
    assert memorisation["bar"] == max(memorisation["validation_correlations"])
    assert numbers["quality"] is None and any("no scorer" in note for note in numbers["notes"])
    assert "picture" not in json.dumps(numbers)


def test_a_random_prior_follows_nothing_that_its_card_could_boast_of(report: PriorReport) -> None:
    met = {verdict.name: verdict.met for verdict in report.verdicts}
    assert not met["denoising gain over total variation at t = 300"]
    assert sum(met.values()) <= 3


def test_without_slices_only_phantoms_and_the_packaged_scan(
    tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treg_med.assessment import sample_scan

    shown = sample_scan.SampleScan("brain", "aGVsbG8=")
    monkeypatch.setattr(build, "show_sample_scan", lambda prior: shown)
    monkeypatch.setattr(build, "oracle_start", lambda *args, **kwargs: None)
    few = ReportSettings(**{**vars(TINY), "pair_noises": 0})
    report = build_report(LatentPrior.from_pretrained(tiny_prior_folder), settings=few)
    assert set(report.slices) == {"phantoms"}
    page = render(report)
    assert "No slices were given" in page and "packaged measured scan" in page
    assert "d. Paired" not in page


@pytest.mark.slow
def test_packaged_scan_is_drawn(tiny_prior_folder: Path) -> None:
    from treg_med.assessment.sample_scan import show_sample_scan

    shown = show_sample_scan(LatentPrior.from_pretrained(tiny_prior_folder))
    assert base64.b64decode(shown.picture).startswith(b"\x89PNG")


def test_samples_are_left_out_where_there_is_nothing_to_compare_them_with(report: PriorReport) -> None:
    assert ReportSettings.quick().audit_samples == 0 < ReportSettings().audit_samples
    page = render(dataclasses.replace(report, memorisation=None, quality=None))
    assert "g. Samples" not in page


def test_samples_are_scored_where_the_prior_has_a_scorer(
    tiny_prior_folder: Path, slices_file: Path, report: PriorReport
) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    prior.scorer = tiny_scorer()
    real = real_slices(slices_file, "val", prior.image_multiple)
    audit, quality, notes = build._audit(prior, slices_file, "val", real, TINY, 0, lambda done, total: None)
    assert audit is not None and quality is not None and not notes
    page = render(dataclasses.replace(report, memorisation=audit, quality=quality))
    assert "What they show" in page and "as many training slices" in page
    asked = build._audit(prior, slices_file, "train", real, TINY, 0, lambda done, total: None)
    assert asked[:2] == (None, None) and "no training slices" in asked[2][0]


class _Refuses(LatentPrior):
    """Takes the texts that it is told to take."""

    takes: tuple[str, ...] = ()

    def embed(self, text: str | Sequence[str]) -> torch.Tensor:
        texts = [text] if isinstance(text, str) else text
        if any(entry not in self.takes for entry in texts):
            raise ConfigError("not a text for this prior")
        return super().embed(text)


@pytest.mark.parametrize(("takes", "sections"), [((), "ae"), (("",), "abef")])
def test_priors_that_take_no_captions(
    tiny_prior_folder: Path, slices_file: Path, takes: tuple[str, ...], sections: str
) -> None:
    prior = _Refuses.from_pretrained(tiny_prior_folder)
    prior.takes = takes
    report = build_report(prior, slices_file, settings=TINY)
    page = render(report)
    assert "".join(re.findall(r"<h2>([a-g])\. ", page)) == sections
    assert "not a text for this prior" in page
    assert report.words == () and report.understanding == {}


def test_command_writes_page_numbers_and_card(
    report: PriorReport, tiny_prior_folder: Path, slices_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(prior: LatentPrior, *args: object, settings: ReportSettings, **options: object) -> PriorReport:
        asked.append((*args, settings, options["seed"]))
        return report

    monkeypatch.setattr(build, "build_report", measured)
    prior = tmp_path / "prior"
    shutil.copytree(tiny_prior_folder, prior)
    common = ("prior-report", prior, "--slices", slices_file, "--quick", "--out", tmp_path / "out")
    result = run(*common)
    assert result.exit_code == 0, result.output
    assert RESEARCH_ONLY in result.stdout and "not met" in result.stdout
    assert not (prior / "prior.json").exists(), "the card changes only when asked"
    assert asked == [(slices_file, "val", ReportSettings.quick(), 0)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["prior-report.html", "prior-report.json"]
    result = run(*common, "--write-card", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert json.loads((prior / "prior.json").read_text())["understanding"] == printed["understanding"]
    assert printed["files"][-1].endswith("prior.json")


def test_command_says_what_is_wrong(tiny_prior_folder: Path, slices_file: Path, tmp_path: Path) -> None:
    missing = run("prior-report", tiny_prior_folder, "--slices", tmp_path / "no.h5", "--out", tmp_path)
    assert missing.exit_code == 5 and "no.h5" in missing.stderr
    empty = run("prior-report", tiny_prior_folder, "--slices", slices_file, "--split", "test", "--out", tmp_path)
    assert empty.exit_code == 3 and "--split" in empty.stderr
    assert run("prior-report", tmp_path / "nowhere").exit_code == 5
    adapted = run("prior-report", tiny_prior_folder, "--adapter", tmp_path, "--write-card", "--out", tmp_path)
    assert adapted.exit_code == 2 and "merge" in adapted.stderr


def test_reconstruct_warns_of_words_that_are_not_followed(tiny_prior_folder: Path, tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    shutil.copytree(tiny_prior_folder, prior)
    record_understanding(prior, {"side": {"wins": 0.52, "slices": 96, "interval": [0.4, 0.6], "follows": False}})
    scan = simulate_scan(phantom_volume((SIZE, SIZE), 1), tmp_path / "scan.h5", acceleration=2.0)
    result = run(
        "reconstruct", scan, "-o", tmp_path / "out", "--prior", prior, "--steps", 1, "--no-controls",
        "--text", "infarct in the left hemisphere",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = "the prior is known not to follow words about side (right beats wrong on 52 % of 96 slices)"
    assert expected in result.stderr
    assert expected in (tmp_path / "out/sub-scan/anat/sub-scan_rec-treg_image.json").read_text()


def test_slices_of_unknown_subjects_and_other_splits_are_left_out(slices_file: Path) -> None:
    slices = real_slices(slices_file, "val", 8)
    assert len(slices) == 9 and set(slices.subjects) == {"person_0", "person_1"}
    assert tuple(real_slices(slices_file, "val", 24).images.shape[-2:]) == (48, 48)
    with pytest.raises(FormatError, match="none"):
        real_slices(slices_file, "test", 8)


def test_phantoms_have_lesions_on_both_sides_alike() -> None:
    slices = phantom_slices(20, SIZE, 8, torch.Generator().manual_seed(0), 0.6)
    sides = [a.side for a in slices.attributes]
    assert (sides.count("left"), sides.count("right")) == (6, 6)
    assert sum(a.lesions == "none" for a in slices.attributes) == 8
    assert [bool(mask.any()) for mask in slices.masks] == [a.lesions != "none" for a in slices.attributes]
    assert len(phantom_slices(1, SIZE, 8, torch.Generator().manual_seed(0), 0.5)) == 1


def test_padding_keeps_the_middle_and_even_choice_keeps_the_ends_away() -> None:
    slices = phantom_slices(10, SIZE, 8, torch.Generator().manual_seed(0), 0.5)
    assert torch.equal(slices.padded(40).images[..., 4:36, 4:36], slices.images)
    chosen = slices.evenly(5)
    assert chosen.captions == slices.take([1, 3, 5, 7, 9]).captions
    assert slices.evenly(50) is slices


def test_levels_without_a_finite_estimate_are_left_out(tiny_prior_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    like = torch.zeros(1, 6, 8, 8)
    assert usable_levels(prior, (69, 999), like) == (69, 999)
    prior.prediction_type = "epsilon"
    assert float(prior.alphas_cumprod[999]) == 0
    assert usable_levels(prior, (69, 999), like) == (69,)


def test_general_words_are_words() -> None:
    words = general_words()
    assert {"left", "infarct", "knee", "flair"} <= set(words)
    assert words == sorted(set(words)) and all(w == w.lower() and w for w in words)

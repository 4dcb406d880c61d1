"""An evaluation from its configuration to its tables: what is run, what is kept, what is set aside."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.evaluation.studies import ARMS, CONFIG, SUBJECTS, brain, save, study, written
from treg_med.data import open_scan
from treg_med.errors import ConfigError
from treg_med.evaluation.config import ConfigFile, read_config
from treg_med.evaluation.pipeline import EvaluationResult, RunSettings, check_names, run_evaluation
from treg_med.evaluation.references import read_reference
from treg_med.evaluation.table import METRICS, read_rows


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else."""
    monkeypatch.setattr("treg_med.evaluation.pipeline.draw_figures", lambda scored: [])


@pytest.fixture
def config(tmp_path: Path, no_figures: None) -> ConfigFile:
    """A study of which nothing is done."""
    return study(tmp_path)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    result = evaluated(study(folder))
    assert (result.cases, result.reconstructed, result.problems) == (2 * SUBJECTS, 2 * SUBJECTS, [])
    assert result.rows == 12 * (1 + 1 + 2)
    return folder


@pytest.fixture
def done(first_run: Path, tmp_path: Path) -> ConfigFile:
    """A study that was evaluated once, in a place of its own."""
    shutil.copytree(first_run, tmp_path / "study")
    return read_config(tmp_path / "study" / "evaluation.yaml")


def evaluated(config: ConfigFile, **run: Any) -> EvaluationResult:
    out = config.root / "out"
    out.mkdir(exist_ok=True)
    return run_evaluation(config, out, RunSettings(workers=1, **run))


def rows(config: ConfigFile) -> list[dict[str, Any]]:
    return list(read_rows(config.root / "out" / "metrics.parquet"))


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_tables_summary_and_report(done: ConfigFile) -> None:
    out = done.root / "out"
    found = rows(done)
    # 3 subjects, 2 scenarios, 2 methods; fastmri by volume, ours by volume and by each of 2 slices.
    assert len(found) == 12 * (1 + 1 + 2)
    assert {(r["subject"], r["scan"]) for r in found} == {(f"p{i}", f"p{i}_T2w") for i in range(SUBJECTS)}
    assert {r["slice"] for r in found} == {None, 0, 2}
    assert {r["arm"] for r in found} == {"none"}
    assert all(r["run_hash"] and r["residual"] > 0 and np.isfinite(r["psnr"]) for r in found)
    summary = json.loads((out / "summary.json").read_text())
    cell = next(
        c
        for g in summary["groups"]
        if (g["scenario"], g["protocol"], g["metric"]) == ("r2", "fastmri", "psnr")
        for c in g["cells"]
        if c["method"] == "tv"
    )
    own = [r["psnr"] for r in found if (r["scenario"], r["protocol"], r["method"]) == ("r2", "fastmri", "tv")]
    assert cell["n"] == SUBJECTS
    assert cell["mean"] == pytest.approx(np.mean(own))
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") >= 2
    assert "acceleration: 2" in page
    with (out / "metrics.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(found)
    assert (out / "config.yaml").read_text().startswith(CONFIG)
    assert read_config(out / "config.yaml").settings == done.settings


def test_scores_are_those_of_the_images_against_the_scan(done: ConfigFile) -> None:
    out = done.root / "out"
    with open_scan(done.root / "scans" / "p1_T2w.nii.gz", acceleration=4, coils=2, noise=0.01) as scan:
        truth = read_reference(scan, (0, 2)).images
    (image,) = (out / "recon" / "brain" / "r4").rglob("*p1*rec-tv*.nii.gz")
    # The phantom's own axes: rows are the second one reversed, columns the first one reversed.
    made = np.flip(np.asarray(nib.load(image).dataobj).transpose(2, 1, 0), (1, 2))
    expected = ((made - truth) ** 2).sum() / (truth**2).sum()
    key = ("p1", "r4", "tv", "fastmri")
    (row,) = (r for r in rows(done) if (r["subject"], r["scenario"], r["method"], r["protocol"]) == key)
    assert row["nmse"] == pytest.approx(expected, rel=1e-5)


def test_a_second_run_does_nothing_and_gives_the_same_bytes(done: ConfigFile) -> None:
    out = done.root / "out"
    before = {name: (out / name).read_bytes() for name in ("metrics.csv", "summary.json", "report.html")}
    kept = {name: times(out / name) for name in ("recon", "scores")}
    again = evaluated(done)
    assert (again.reconstructed, again.skipped, again.measured, again.kept) == (0, 2 * SUBJECTS, 0, 4 * SUBJECTS)
    assert {name: (out / name).read_bytes() for name in before} == before
    assert {name: times(out / name) for name in kept} == kept


def test_rescoring_under_another_protocol_reconstructs_nothing(done: ConfigFile, no_figures: None) -> None:
    before = times(done.root / "out" / "recon")
    (done.root / "out" / "recon" / "brain" / "r2").rename(done.root / "moved")
    other = dataclasses.replace(done, settings=done.settings.model_copy(update={"protocols": ["inversebench-mri"]}))
    result = evaluated(other, rescore=True)
    assert {(p.scenario, p.kind) for p in result.problems} == {("r2", "ResourceError")}
    assert {(r["scenario"], r["protocol"]) for r in rows(done)} == {("r4", "inversebench-mri")}
    (done.root / "moved").rename(done.root / "out" / "recon" / "brain" / "r2")
    result = evaluated(other, rescore=True)
    assert (result.problems, result.measured, result.kept) == ([], 2 * SUBJECTS, 2 * SUBJECTS)
    assert times(done.root / "out" / "recon") == before


def test_one_bad_scan_is_set_aside_and_listed(config: ConfigFile) -> None:
    (config.root / "scans" / "p1_T2w.nii.gz").write_bytes(b"poison")
    result = evaluated(config)
    assert [(p.scan, p.scenario, p.kind) for p in result.problems] == [
        ("p1_T2w", "r2", "FormatError"),
        ("p1_T2w", "r4", "FormatError"),
    ]
    assert {r["subject"] for r in rows(config)} == {"p0", "p2"}
    assert "p1_T2w" in (config.root / "out" / "report.html").read_text()


def test_a_method_that_fails_is_listed_and_the_others_are_scored(config: ConfigFile) -> None:
    failing = CONFIG.replace("methods:\n", "methods:\n  - {label: wrong, solver: fbp}\n")
    result = evaluated(written(config.root, failing))
    assert {(p.method, p.kind) for p in result.problems} == {("wrong", "ConfigError")}
    assert len(result.problems) == result.reconstructed == 2 * SUBJECTS
    found = rows(config)
    assert {r["method"] for r in found} == {"zf", "tv"}
    assert {r["subject"] for r in found} == {"p0", "p1", "p2"}
    again = evaluated(written(config.root, failing))
    assert (again.problems, again.measured) == (result.problems, 0)


def test_old_scores_of_what_now_fails_do_not_count(done: ConfigFile, no_figures: None) -> None:
    (done.root / "scans" / "p0_T2w.nii.gz").write_bytes(b"poison")
    evaluated(done)
    assert {r["subject"] for r in rows(done)} == {"p1", "p2"}


def test_without_any_score_the_tables_are_empty(config: ConfigFile) -> None:
    for path in (config.root / "scans").iterdir():
        path.write_bytes(b"poison")
    result = evaluated(config)
    assert len(result.problems) == 2 * SUBJECTS
    assert (result.rows, result.summary) == (0, None)


def test_shares_together_are_the_whole(config: ConfigFile, first_run: Path) -> None:
    for i in range(4):
        part = evaluated(config, shard=(i, 4))
        assert part.files == []
    assert not (config.root / "out" / "metrics.csv").exists()
    last = evaluated(config)
    assert (last.reconstructed, last.measured) == (0, 0)
    assert (config.root / "out" / "metrics.csv").read_bytes() == (first_run / "out" / "metrics.csv").read_bytes()


def test_predictions_are_scored_beside_the_rest(config: ConfigFile) -> None:
    vendor = config.root / "vendor"
    for scenario, shift in (("r2", 0.0), ("r4", 5.0)):
        for number in range(SUBJECTS):
            save(vendor / scenario / f"p{number}_T2w.nii.gz", brain(number) + shift)
    (vendor / "r4" / "p2_T2w.nii.gz").unlink()
    save(vendor / "r2" / "p1_T2w.nii.gz", np.flip(brain(1), 1))  # the header does not say so
    text = CONFIG + 'predictions:\n  - {label: vendor, files: "vendor/{scenario}/*.nii.gz"}\n'
    result = evaluated(written(config.root, text))
    assert [(p.scan, p.scenario, p.method, p.kind) for p in result.problems] == [
        ("p1_T2w", "r2", "vendor", "GeometryError"),
        ("p2_T2w", "r4", "vendor", "MissingPrediction"),
    ]
    assert "mirrored" in result.problems[0].message
    scores = {
        (r["scenario"], r["subject"]): r
        for r in rows(config)
        if r["method"] == "vendor" and r["protocol"] == "fastmri"
    }
    assert set(scores) == {("r2", "p0"), ("r2", "p2"), ("r4", "p0"), ("r4", "p1")}
    assert scores["r2", "p0"]["nmse"] == 0
    assert scores["r4", "p0"]["nmse"] > 0
    assert scores["r4", "p0"]["residual"] is None


def test_targets_beside_the_scans(config: ConfigFile) -> None:
    for number in range(SUBJECTS):
        save(config.root / "full" / f"p{number}_T2w.nii.gz", 2 * brain(number))
    text = CONFIG.replace('slices: "::2"', 'slices: "::2", target: "full/*.nii.gz"')
    evaluated(written(config.root, text))
    found = [r for r in rows(config) if (r["method"], r["protocol"], r["scenario"]) == ("tv", "fastmri", "r2")]
    assert all(0.2 < r["nmse"] < 0.3 for r in found)  # half the intensity: a quarter of the energy
    save(config.root / "full" / "p0_T2w.nii.gz", brain(0))
    again = evaluated(config=written(config.root, text))
    assert again.measured == 4  # of one subject: two scenarios, two methods
    save(config.root / "full" / "p0_T2w.nii.gz", brain(0), np.diag([1.0, 1.0, 4.0, 1.0]))
    result = evaluated(written(config.root, text))
    assert {(p.scan, p.kind) for p in result.problems} == {("p0_T2w", "GeometryError")}


def test_requirements(done: ConfigFile, no_figures: None) -> None:
    good = dataclasses.replace(done, settings=done.settings.model_copy(update={"require": ["tv@r2:ssim>=0.1"]}))
    result = evaluated(good)
    assert result.passed
    assert result.requirements
    bad = dataclasses.replace(done, settings=done.settings.model_copy(update={"require": ["ssim>=0.9999"]}))
    assert not evaluated(bad).passed
    for text, said in (("tvx:ssim>=1", "did you mean 'tv'"), ("ssm>=1", "ssim"), ("ssim", "expected a requirement")):
        wrong = dataclasses.replace(done, settings=done.settings.model_copy(update={"require": [text]}))
        with pytest.raises(ConfigError, match=said):
            check_names(wrong)
    wrong = dataclasses.replace(done, settings=done.settings.model_copy(update={"protocols": ["fastmir"]}))
    with pytest.raises(ConfigError, match=r"protocols\[0\].*did you mean 'fastmri'"):
        check_names(wrong)


def test_ct_is_left_out_of_protocols_of_magnitudes(tmp_path: Path) -> None:
    values = np.full((32, 32, 2), -1000.0)
    values[8:24, 8:24] = 40
    values[12:16, 12:20] = 200
    save(tmp_path / "ct" / "a.nii.gz", values)
    config = written(
        tmp_path,
        """\
version: 1
datasets: [{name: chest, files: ct}]
scenarios: [{name: v30, reader: {views: 30}}]
methods: [{label: fbp, solver: fbp}]
protocols: [fastmri, volume]
statistics: {resamples: 199}
""",
    )
    result = evaluated(config)
    assert result.notes == ["chest: fastmri is not defined for HU and was left out"]
    assert {r["protocol"] for r in rows(config)} == {"volume"}
    assert all(r["rmse_hu"] > 0 for r in rows(config))


@pytest.mark.slow
def test_prompt_arms_are_run_and_compared(config: ConfigFile, tiny_prior_folder: Path) -> None:
    lines = [{"file": f"p{i}_T2w.nii.gz", "caption": text} for i, text in enumerate(("FLAIR", "axial T2w", "T1w"))]
    (config.root / "scans" / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    text = ARMS.replace("seeds: [0, 1]", f"prior: {tiny_prior_folder}")
    result = evaluated(written(config.root, text))
    assert result.problems == []
    arms = [(r["method"], r["arm"]) for r in rows(config) if r["subject"] == "p1"]
    assert arms == [
        ("tv", "none"),
        ("treg-control", "none"),
        ("treg", "right"),
        ("treg", "empty"),
        ("treg", "wrong"),
        ("treg", "shuffled"),
    ]
    assert result.summary is not None
    (group,) = (g for g in result.summary["groups"] if g["metric"] == "psnr")
    prompts = [c["against_arm"] for c in group["comparisons"] if c["kind"] == "prompt"]
    assert prompts == ["empty", "wrong", "shuffled"]
    assert "another subject" in (config.root / "out" / "report.html").read_text()


def test_every_metric_of_every_protocol_has_a_column() -> None:
    from treg_med.evaluation.protocols import available_protocols, evaluate, protocol_units

    target = np.abs(np.random.default_rng(0).normal(size=(2, 200, 200)))
    for protocol in available_protocols():
        for unit in protocol_units(protocol):
            shift = -1000 if unit == "HU" else 0
            for score in evaluate(1000 * target + shift, 1000 * target + shift, protocol, unit=unit):
                assert set(score.values) <= set(METRICS)

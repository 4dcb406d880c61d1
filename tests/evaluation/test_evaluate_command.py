"""``treg-med evaluate``: what it prints and with which code it ends."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from treg_med.cli import app
from treg_med.data.phantoms import phantom_volume
from treg_med.notice import RESEARCH_ONLY

CONFIG = """\
version: 1
datasets: [{name: brain, files: "*.nii.gz"}]
scenarios: [{name: r2, reader: {acceleration: 2}}]
methods: [{label: zf, solver: zero-filled}]
protocols: fastmri
statistics: {resamples: 199}
"""


def evaluate(folder: Path, *arguments: str) -> Result:
    command = ["evaluate", str(folder / "evaluation.yaml"), "--out", str(folder / "out"), "--workers", "1", *arguments]
    return CliRunner().invoke(app, command)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    values = 100 * phantom_volume((16, 16), 2).movedim(0, -1).numpy()
    for name in ("p1_T1w", "p2_T1w"):
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([1, 1, 3, 1.0])), tmp_path / f"{name}.nii.gz")
    (tmp_path / "evaluation.yaml").write_text(CONFIG)
    return tmp_path


def test_it_prints_means_and_files(study: Path) -> None:
    result = evaluate(study)
    assert result.exit_code == 0, result.output
    assert RESEARCH_ONLY in result.stdout
    assert "2 volumes: 2 reconstructed" in result.stdout
    assert "report.html" in result.stdout
    assert "zf" in result.stdout


def test_json_and_requirements(study: Path) -> None:
    result = evaluate(study, "--json", "--require", "zf:psnr>=1", "--require", "ssim>=0.9999")
    assert result.exit_code == 8
    facts = json.loads(result.stdout)
    assert [each["passed"] for each in facts["requirements"]] == [True, False]
    assert evaluate(study, "--require", "psnr>=1").exit_code == 0


def test_a_dry_run_writes_nothing(study: Path) -> None:
    result = evaluate(study, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2 reconstructed volumes" in result.stdout
    facts = json.loads(evaluate(study, "--dry-run", "--json").stdout)
    assert facts["plan"] == [
        {"dataset": "brain", "scenario": "r2", "subjects": 2, "scans": 2, "volumes": 2, "methods": ["zf"]}
    ]
    assert not (study / "out").exists()


def test_what_has_no_score_is_listed(study: Path) -> None:
    (study / "p2_T1w.nii.gz").write_bytes(b"poison")
    result = evaluate(study)
    assert result.exit_code == 3
    assert "p2_T1w" in result.stderr
    assert "FormatError" in result.stderr


def test_wrong_options(study: Path) -> None:
    assert evaluate(study, "--rescore", "--overwrite").exit_code == 2
    assert evaluate(study, "--protocol", "fastmir").exit_code == 2
    assert evaluate(study, "--shard", "2/2").exit_code == 2
    assert not (study / "out").exists()
    assert evaluate(study, "--rescore").exit_code == 3  # nothing is there


def test_shares(study: Path) -> None:
    assert evaluate(study, "--shard", "0/2").exit_code == 0
    assert not (study / "out" / "metrics.csv").exists()
    result = evaluate(study)
    assert "1 reconstructed, 1 there already" in result.stdout

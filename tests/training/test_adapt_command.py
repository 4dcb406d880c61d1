"""``treg-med adapt`` and ``reconstruct --adapter``: what a user types, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from treg_med.cli import app
from treg_med.data import RESEARCH_ONLY, simulate_scan
from treg_med.data.phantoms import phantom_volume


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slice of k-space."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    return simulate_scan(phantom_volume((32, 32), 1), path, coils=1, acceleration=2.0, seed=3)


def test_adapted_prior_is_used_merged_and_named(
    scan: Path, tmp_path: Path, tiny_prior_folder: Path, slice_file: Path
) -> None:
    base = ("--prior", tiny_prior_folder)
    quick = ("--data", slice_file, "--steps", 2, "--batch", 2, "--crop", 32, "--rank", 2)
    result = run("adapt", "unet", *base, *quick, "--out", tmp_path / "ct")
    assert result.exit_code == 0, result.output
    assert "denoising rms at t=69" in result.stdout and RESEARCH_ONLY in result.stdout
    result = run("adapt", "vae", *base, *quick, "--out", tmp_path / "sharp", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["card"]["method"] == "full"
    adapters = ("--adapter", tmp_path / "ct", "--adapter", tmp_path / "sharp")
    result = run("adapt", "merge", *base, *adapters, "--out", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    common = ("reconstruct", scan, "--steps", 2, "--slices", 0, "--no-controls", "--text", "FLAIR")
    for name, prior in (("on_top", (*base, *adapters)), ("merged", ("--prior", tmp_path / "merged")), ("plain", base)):
        result = run(*common, *prior, "-o", tmp_path / "out" / name)
        assert result.exit_code == 0, result.output
    place = "sub-scan/anat/sub-scan_rec-treg_image"
    images, sidecars = (
        {name: read(tmp_path / "out" / name / f"{place}.{end}") for name in ("on_top", "merged", "plain")}
        for read, end in (
            (lambda p: nib.load(p).get_fdata(), "nii.gz"),
            (lambda p: json.loads(p.read_text()), "json"),
        )
    )
    assert np.abs(images["on_top"] - images["merged"]).max() < 1e-3 * images["plain"].max()
    assert not np.allclose(images["on_top"], images["plain"])
    assert sidecars["on_top"]["prior"]["name"].endswith("+ ct + sharp")
    assert [a["name"] for a in sidecars["on_top"]["adapters"]] == ["ct", "sharp"]
    sums = {sidecars["on_top"]["prior"]["sha256"], *(a["sha256"] for a in sidecars["on_top"]["adapters"])}
    assert len(sums) == 3 and all(len(value) == 64 for value in sums)
    assert "adapters" not in sidecars["plain"]


def test_stopping_and_getting_no_better_are_said(tmp_path: Path, tiny_prior_folder: Path, slice_file: Path) -> None:
    common = ("adapt", "vae", "--prior", tiny_prior_folder, "--data", slice_file, "--out", tmp_path / "out")
    harmful = (*common, "--steps", 3, "--batch", 2, "--crop", 32, "--rate", 10)
    result = run(*harmful, "--time-limit", 0.001)
    assert result.exit_code == 0 and "unfinished" in result.stdout and not (tmp_path / "out").exists()
    result = run(*harmful)
    assert result.exit_code == 0 and "no better than its base" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("adapt", "unet", "--data", "none.h5", "--out", "x"), 5, "not there"),
        (("adapt", "vae", "--data", "none.h5", "--out", "x", "--method", "some"), 2, "lora"),
        (("adapt", "unet", "--data", "none.h5", "--out", "x", "--time-limit", "0"), 2, "--time-limit"),
        (("adapt", "merge", "--adapter", "none", "--out", "x"), 5, "adapter folder"),
    ],
)
def test_bad_adaptations_are_one_line(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr and "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())

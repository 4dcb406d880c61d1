"""Regions, and predictions that are not finite, from a configuration to the tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.evaluation.studies import brain, save, written
from treg_med.data.phantoms import write_fastmri
from treg_med.errors import ConfigError
from treg_med.evaluation.config import ConfigFile
from treg_med.evaluation.pipeline import EvaluationResult, RunSettings, check_names, run_evaluation
from treg_med.evaluation.regions import BOX
from treg_med.evaluation.table import read_rows

TEXT = """\
version: 1
datasets: [{name: brain, files: "scans/*", slices: "::2", masks: "seg/*"}]
scenarios: [{name: r2, reader: {acceleration: 2, coils: 2, noise: 0.01}}]
methods: [{label: zero-filled, solver: zero-filled}]
predictions: [{label: vendor, files: "vendor/*"}]
protocols: [fastmri]
require: ["zero-filled:psnr_roi>=1"]
statistics: {resamples: 199}
"""
METRICS = {"psnr_roi", "ssim_roi", "nmse_roi", "error_ratio", "cnr", "cnr_target", "lesion_contrast"}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else."""
    monkeypatch.setattr("treg_med.evaluation.pipeline.draw_figures", lambda scored: [])


@pytest.fixture
def study(tmp_path: Path) -> ConfigFile:
    """Three scans: a mask with voxels, an empty one, none."""
    for number in range(3):
        save(tmp_path / "scans" / f"p{number}_T2w.nii.gz", brain(number))
        save(tmp_path / "vendor" / f"p{number}_T2w.nii.gz", brain(number) + 5)
    save(tmp_path / "seg" / "p0_lesions.nii.gz", lesion())
    save(tmp_path / "seg" / "p1_lesions.nii.gz", np.zeros((32, 32, 4)))
    return written(tmp_path, TEXT)


def lesion() -> np.ndarray:
    mask = np.zeros((32, 32, 4))
    mask[12:18, 10:15, 2] = 3
    return mask


def evaluated(config: ConfigFile, **run: Any) -> EvaluationResult:
    out = config.root / "out"
    out.mkdir(exist_ok=True)
    return run_evaluation(config, out, RunSettings(workers=1, **run))


def rows(config: ConfigFile, protocol: str = "region") -> list[dict[str, Any]]:
    return [r for r in read_rows(config.root / "out" / "metrics.parquet") if r["protocol"] == protocol]


def test_scans_with_a_mask_have_rows_of_their_region(study: ConfigFile) -> None:
    result = evaluated(study)
    assert result.problems == []
    found = rows(study)
    assert [(r["subject"], r["method"], r["mask"], r["level"]) for r in found] == [
        ("p0", "zero-filled", "mask", "volume"),
        ("p0", "vendor", "mask", "volume"),
    ]
    assert all(r["protocol_version"] == 1 and r["psnr"] is None for r in found)
    assert all(math.isfinite(r[name]) for r in found for name in METRICS - {"error_ratio"})
    # The vendor is off by 5 everywhere.
    peak = brain(0)[..., ::2].max()
    assert found[1]["data_range"] == pytest.approx(peak)
    assert found[1]["psnr_roi"] == pytest.approx(20 * math.log10(peak / 5), abs=1e-4)
    assert found[1]["error_ratio"] == pytest.approx(1, rel=1e-4)
    (image,) = (study.root / "out" / "recon" / "brain" / "r2").rglob("*p0*zerofilled*.nii.gz")
    made, inside = np.asarray(nib.load(image).dataobj), lesion()[..., ::2] > 0
    error = (made - brain(0)[..., ::2])[inside].astype(float)
    assert found[0]["psnr_roi"] == pytest.approx(10 * math.log10(float(peak) ** 2 / (error**2).mean()), abs=1e-4)
    summary = json.loads((study.root / "out" / "summary.json").read_text())
    assert {g["region"] for g in summary["groups"] if g["protocol"] == "region"} == {"mask"}
    assert summary["notes"] == [
        "brain: 1 of 3 scans have no mask or box, and no rows of regions",
        "brain: no voxel of the mask or boxes lies in the evaluated slices of 1 scan (p1_T2w)",
    ]
    assert result.passed and len(result.requirements) == 1


def test_another_mask_is_measured_anew_and_nothing_else(study: ConfigFile) -> None:
    before = evaluated(study)
    first = rows(study)
    assert (before.measured, evaluated(study).measured) == (6, 0)
    save(study.root / "seg" / "p0_lesions.nii.gz", lesion()[::-1])
    again = evaluated(study)
    assert (again.reconstructed, again.measured, again.kept) == (0, 2, 4)
    assert rows(study)[0]["psnr_roi"] != first[0]["psnr_roi"]
    assert rows(study, "fastmri") != []
    without = written(study.root, TEXT.replace(', masks: "seg/*"', "").replace('["zero-filled:psnr_roi>=1"]', "[]"))
    assert evaluated(without).measured == 0
    assert rows(study) == []


def test_a_mask_that_does_not_fit_is_listed_and_the_rest_is_scored(study: ConfigFile) -> None:
    save(study.root / "seg" / "p0_lesions.nii.gz", lesion(), np.diag([1.0, 1.0, 4.0, 1.0]))
    result = evaluated(study)
    assert [(p.scan, p.method, p.kind) for p in result.problems] == [("p0_T2w", None, "GeometryError")]
    assert "regions: " in result.problems[0].message
    assert len(rows(study, "fastmri")) == 6
    assert rows(study) == []
    save(study.root / "seg" / "p0_lesions.nii.gz", lesion())
    assert evaluated(study).problems == []
    assert len(rows(study)) == 2


def test_a_prediction_with_nan_is_scored_as_such(study: ConfigFile) -> None:
    values = brain(0) + 5
    values[3, 4, 2] = np.nan
    values[5, 4, 0] = np.inf
    save(study.root / "vendor" / "p0_T2w.nii.gz", values)
    config = written(study.root, TEXT.replace("[fastmri]", "[fastmri, volume, inversebench-mri]"))
    result = evaluated(config)
    assert result.problems == []
    broken = [
        r
        for protocol in ("fastmri", "volume", "inversebench-mri", "region")
        for r in rows(study, protocol)
        if (r["subject"], r["method"]) == ("p0", "vendor")
    ]
    assert [(r["protocol"], r["slice"], r["nan_pixels"]) for r in broken] == [
        ("fastmri", None, 2),
        ("volume", None, 2),
        ("volume", 0, 1),
        ("volume", 2, 1),
        ("inversebench-mri", 0, 1),
        ("inversebench-mri", 2, 1),
        ("region", None, 2),
    ]
    assert all(math.isnan(r["psnr_roi" if r["protocol"] == "region" else "psnr"]) for r in broken)
    assert all("NaN" in r["note"] for r in broken)
    assert result.summary is not None
    groups = [g for g in result.summary["groups"] if g["metric"] in ("nmse", "nmse_roi")]
    found = {g["protocol"]: c["nan_predictions"] for g in groups for c in g["cells"] if c["method"] == "vendor"}
    assert found == {"fastmri": 1, "volume": 2, "region": 1}


def test_boxes_by_label(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    lines = ["file,slice,study_level,x,y,width,height,label"]
    for number in range(10):
        write_fastmri(tmp_path / "scans" / f"file{number}.h5", coils=2, n_slices=1)
        lines.append(f"file{number},0,No,12,14,8,9,Mass")
    lines.append("file3,0,No,20,20,5,5,Edema")
    (tmp_path / "brain.csv").write_text("\n".join(lines))
    text = TEXT.replace('slices: "::2", masks: "seg/*"', "boxes: brain.csv").replace(", coils: 2, noise: 0.01", "")
    text = text.replace('predictions: [{label: vendor, files: "vendor/*"}]\n', "")
    result = evaluated(written(tmp_path, text))
    assert result.problems == []
    found = [r["mask"] for r in read_rows(tmp_path / "out" / "metrics.parquet") if r["protocol"] == "region"]
    assert (found.count(BOX + "Mass"), found.count(BOX + "Edema"), len(found)) == (10, 1, 11)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {g["region"] for g in summary["groups"]} == {None, BOX + "Mass"}
    said = "brain, r2: no means of labels with fewer than 10 cases, which are in the table only: Edema (1)"
    assert summary["notes"] == [said]
    page = (tmp_path / "out" / "report.html").read_text()
    assert said in page and "region (version 1) · box: Mass" in page and "box: Edema" not in page


def test_regions_are_no_protocol_to_ask_for(study: ConfigFile) -> None:
    with pytest.raises(ConfigError, match=r"protocols\[0\].*leave it out"):
        check_names(written(study.root, TEXT.replace("[fastmri]", "[region]")))

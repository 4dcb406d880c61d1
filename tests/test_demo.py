"""The demo runs from the installed package alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treg_med.cli import app
from treg_med.data import is_complete
from treg_med.priors import DEFAULT_PRIOR

LABELS = ["zero-filled", "cg-sense", "wavelet", "tv", "treg-control", "treg"]


@pytest.mark.slow
@pytest.mark.skipif(not (DEFAULT_PRIOR / "prior.json").is_file(), reason="needs the embedded prior")
def test_demo(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    (printed,) = json.loads(result.stdout)["volumes"]
    residual = {row["label"]: row["residual"] for row in printed["results"]}
    assert list(residual) == LABELS
    assert residual["zero-filled"] > 2
    assert 0.9 < residual["treg"] < 1.1
    folder = tmp_path / "sub-demo" / "anat"
    sidecars = [Path(row["sidecar_path"]) for row in printed["results"]]
    assert {path.parent for path in sidecars} == {folder}
    assert [path.name.split("_")[1] for path in sidecars] == [
        "rec-zerofilled", "rec-cgsense", "rec-wavelet", "rec-tv", "rec-treg", "rec-treg"
    ]  # fmt: skip
    assert all(is_complete(path) for path in sidecars)
    assert Path(printed["figure"]).parent == folder
    assert Path(printed["figure"]).stat().st_size > 10_000
    assert Path(printed["page"]).parent == tmp_path
    assert Path(printed["page"]).stat().st_size > 10_000

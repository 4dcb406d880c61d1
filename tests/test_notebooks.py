"""Every notebook runs from its source and matches it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from treg_med.priors import DEFAULT_PRIOR

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))


def test_there_are_notebooks(repository: Path) -> None:
    assert (repository / "notebooks" / "01_five_minutes.py") in SOURCES


def _cells(path: Path) -> list[tuple[str, str]]:
    jupytext = pytest.importorskip("jupytext")
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_paired_notebook_is_executed_and_up_to_date(source: Path) -> None:
    notebook = source.with_suffix(".ipynb")
    assert _cells(notebook) == _cells(source), "run: python .ci/execute_notebooks.py"
    code = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])


@pytest.mark.slow
@pytest.mark.skipif(not (DEFAULT_PRIOR / "prior.json").is_file(), reason="needs the embedded prior")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(source))
    assert names["tm"].__name__ == "treg_med"
    assert list(tmp_path.iterdir()) == [], "a notebook leaves no files behind"

"""Execute every notebook source and write the paired .ipynb: ``python .ci/execute_notebooks.py``."""

from __future__ import annotations

from pathlib import Path

import jupytext
from nbclient import NotebookClient


def main() -> None:
    """Execute all notebooks from a clean kernel each."""
    for source in sorted((Path(__file__).parents[1] / "notebooks").glob("*.py")):
        notebook = jupytext.read(source)
        client = NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False)
        client.execute(cwd=str(source.parent))
        for cell in notebook.cells:
            if cell.cell_type == "code":
                # Progress bars and warnings of libraries are no result.
                streams = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
                cell.outputs = streams
        jupytext.write(notebook, source.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()

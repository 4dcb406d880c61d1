"""Put the tables of finished evaluations into one page.

    python benchmarks/quality/write_results.py benchmarks/quality/results_* --out docs/results.md

Each folder is what ``treg-med evaluate`` wrote; its configuration's first comment says what it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from treg_med.data.atomic import StagedFiles
from treg_med.evaluation.report import markdown_table

HEAD = """\
# Results

Written by `python benchmarks/quality/write_results.py`; how the evaluations were run is in
[benchmarks/quality](../benchmarks/quality/README.md). Validation subjects, which nothing was trained or tuned on. Means
over subjects with 95 % BCa intervals; slices are averaged within a scan and scans within a subject first. The scans are
*simulated* from images: an inverse crime. `NAME-control` is the pipeline of NAME with the prior removed. `unet` is a
small supervised network (1.9 million parameters, half an hour of CPU training) that was trained on the same training
subjects, for these acquisitions. For research use only.
"""


def write_results(folders: Sequence[Path], out: Path) -> None:
    """Write the page."""
    parts = [HEAD]
    for folder in folders:
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        title = next(line for line in config.splitlines() if line.startswith("# ")).removeprefix("# ")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        parts.append(f"\n## {title}\n\n{markdown_table(summary)}")
    with StagedFiles(overwrite=True) as staged:
        staged.path(out).write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
        staged.commit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_args()
    write_results(arguments.folders, arguments.out)

"""Put the tables of finished evaluations into one page.

    python benchmarks/quality/write_results.py benchmarks/quality/results_{mri,ct} --out docs/results.md

Each folder is what ``treg-med evaluate`` wrote; its configuration's first comment says what it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treg_med.data.atomic import StagedFiles
from treg_med.evaluation.metric_names import METRICS
from treg_med.evaluation.report import markdown_table

OVERVIEWS = (("fastmri", "psnr"), ("fastmri", "ssim"), ("volume", "rmse_hu"), ("volume", "ssim"))
HEAD = """\
# Results

Written by `python benchmarks/quality/write_results.py`; how the evaluations were run is in
[benchmarks/quality](../benchmarks/quality/README.md). Validation subjects, which nothing was trained or tuned on. Means
over subjects with 95 % BCa intervals; slices are averaged within a scan and scans within a subject first. The scans are
*simulated* from images: an inverse crime. `NAME-control` is the pipeline of NAME with the prior removed. `unet` is a
small supervised network (1.9 million parameters, half an hour of CPU training at most) that was trained on the same
training subjects, for these acquisitions: it improves the zero-filled image (CT: filtered backprojection and SIRT),
`unet-dc` then brings that to the data, and `unet-tv` is one that improves the image of total variation, from which the
methods with a prior start as well. In the overviews the best of a column is bold; controls and other texts than the
right one are not in the running. `fastmri` is over the whole image, the air around the head included; `volume` is
inside the object. For research use only.
"""


def overview(summary: Mapping[str, Any], protocol: str, metric: str) -> str:
    """Return one table of means, methods in rows and acquisitions in columns; the best of a column is bold."""
    groups = [g for g in summary["groups"] if (g["protocol"], g["level"], g["metric"]) == (protocol, "volume", metric)]
    scenarios = list(dict.fromkeys(group["scenario"] for group in groups))
    rows: dict[str, dict[str, str]] = {}
    for group in groups:
        best = (max if group["better"] == "higher" else min)(c["mean"] for c in group["cells"] if _in_the_running(c))
        for cell in group["cells"]:
            name = cell["method"] + (f", {cell['arm']} text" if cell["arm"] != "none" else "")
            shown = METRICS[metric].format(cell["mean"])
            bold = cell["mean"] == best and _in_the_running(cell)
            rows.setdefault(name, {})[group["scenario"]] = f"**{shown}**" if bold else shown
    head = f"| {METRICS[metric].heading}, {protocol} | " + " | ".join(scenarios) + " |\n"
    line = "| --- |" + " ---: |" * len(scenarios) + "\n"
    body = (
        f"| {name} | " + " | ".join(values.get(s, "–") for s in scenarios) + " |"
        for name, values in rows.items()
    )
    return head + line + "\n".join(body) + "\n"


def write_results(folders: Sequence[Path], out: Path) -> None:
    """Write the page."""
    parts = [HEAD]
    for folder in folders:
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        title = next(line for line in config.splitlines() if line.startswith("# ")).removeprefix("# ")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        first = [overview(summary, *shown) for shown in OVERVIEWS if any(_is(g, shown) for g in summary["groups"])]
        parts.append("\n".join([f"\n## {title}\n", *first, markdown_table(summary)]))
    with StagedFiles(overwrite=True) as staged:
        staged.path(out).write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
        staged.commit()


def _in_the_running(cell: Mapping[str, Any]) -> bool:
    """Whether it is a method proper, and not what one is compared with: a control or another text."""
    return not cell["control"] and cell["arm"] in ("none", "right")


def _is(group: Mapping[str, Any], shown: tuple[str, str]) -> bool:
    return (group["protocol"], group["metric"]) == shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_args()
    write_results(arguments.folders, arguments.out)

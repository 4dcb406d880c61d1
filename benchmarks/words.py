"""Where words start to matter: right, empty and wrong contrast and plane as less and less is measured.

    python benchmarks/words.py --slices brain_mr_slices_2d.h5 --out classical.json
    python benchmarks/words.py --slices brain_mr_slices_2d.h5 --settings '{"start": "noise"}' --out noise.json
    python benchmarks/words.py --tables classical.json noise.json --figure notebooks/figures/words_matter.png

One coil: random columns (R=4 with 8 % centre, then 4, 3, 2.5 and 2 %) and straight lines through the centre of k-space,
the few views of MR; and means over blocks of pixels. Noise 35 dB below the image maximum. *looks right*: share of the
results that the scorer of the prior, a network of its own, finds nearer to the right words than to the wrong ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mri_quality import Case, by_subject, cases, score
from solvers import blocks

from treg_med.priors import LatentPrior
from treg_med.solvers import get_solver
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import counterfactuals

ACCELERATIONS, LINES, BLOCKS = (4, 8, 16, 24), (20, 10), (8, 16)
TASKS = (*(f"R={r}" for r in ACCELERATIONS), *(f"{n} lines" for n in LINES), *(f"blocks of {b}" for b in BLOCKS))
WRONG = ("contrast", "plane")


def measured(task: str, slices: CaptionedSlices, per_subject: int) -> Iterator[Case]:
    """The slices of a task."""
    if task.startswith("R="):
        return cases(slices, per_subject, 1, int(task[2:]))
    if task.endswith("lines"):
        return cases(slices, per_subject, 1, int(task.split()[0]), radial=True)
    return blocks(slices, per_subject, int(task.rsplit(" ", 1)[1]))


def rows_of(
    task: str, prior: LatentPrior, slices: CaptionedSlices, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Reconstruct every slice of a task with every text."""
    solver = get_solver("treg", arguments.preset, **json.loads(arguments.settings))
    rows = []
    for number, case in enumerate(measured(task, slices, arguments.per_subject)):
        wrong = {name: counterfactuals(case.caption, name)[0] for name in WRONG if counterfactuals(case.caption, name)}
        level = torch.quantile(case.reference[case.reference > 0.1 * case.reference.max()], 0.997)
        for name, text in {"right": case.caption, "empty": "", **wrong}.items():
            rec = solver(case.measurement, prior=prior, text=text, generator=torch.Generator().manual_seed(number))
            psnr, ssim = score(rec.image, case)
            row = {"task": task, "text": name, "subject": case.subject, "slice": number, "psnr": psnr, "ssim": ssim}
            row["settings"] = arguments.settings
            for key, other in wrong.items():
                right, instead = prior.agreement(rec.image.abs() / level, [case.caption, other]).tolist()
                row[f"looks_{key}"] = right - instead
            rows.append(row | {"residual": rec.residual})
    return rows


def gains(rows: list[dict[str, Any]], task: str, other: str) -> tuple[list[float], list[str]]:
    """PSNR with the right text minus that with another, slice by slice, and the subjects."""
    of_task = {(row["slice"], row["text"]): row for row in rows if row["task"] == task}
    chosen = [number for number, text in of_task if text == other]
    pairs = [(of_task[number, "right"], of_task[number, other]) for number in chosen]
    return [right["psnr"] - row["psnr"] for right, row in pairs], [right["subject"] for right, _ in pairs]


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Print one row per task: what the right words are worth, and what the results look like."""
    print(
        "| measured | PSNR, right | minus empty | minus wrong contrast | minus wrong plane "
        "| looks right, contrast: right / empty / wrong words | plane |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for task in (task for task in TASKS if any(row["task"] == task for row in rows)):
        right = [row for row in rows if row["task"] == task and row["text"] == "right"]
        cells = [by_subject([row["psnr"] for row in right], [row["subject"] for row in right])]
        cells += [by_subject(*gains(rows, task, other)) for other in ("empty", *WRONG)]
        cells += [" / ".join(looks_right(rows, task, text, key) for text in ("right", "empty", key)) for key in WRONG]
        print(f"| {task} | {' | '.join(cells)} |")


def looks_right(rows: list[dict[str, Any]], task: str, text: str, attribute: str) -> str:
    """Share of the results with a text that agree better with the right words."""
    key = f"looks_{attribute}"
    found = [row[key] > 0 for row in rows if row["task"] == task and row["text"] == text and key in row]
    return f"{100 * np.mean(found):.0f} %"


def draw(parts: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw what the right words are worth against the acceleration, one panel for each setting."""
    figure = Figure(figsize=(4 * len(parts), 3.2), layout="constrained")
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axis, (settings, rows) in zip(panels, parts.items(), strict=True):
        for other, label in (("empty", "no words"), ("contrast", "wrong contrast"), ("plane", "wrong plane")):
            found = [gains(rows, f"R={r}", other)[0] for r in ACCELERATIONS]
            spread = [np.std(values, ddof=1) / len(values) ** 0.5 for values in found]
            axis.errorbar(ACCELERATIONS, [np.mean(v) for v in found], spread, marker="o", capsize=3, label=label)
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set(title=title(settings), xlabel="acceleration", xticks=ACCELERATIONS)
    panels[0].set_ylabel("right words minus (dB of PSNR)")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def title(settings: str) -> str:
    """Heading of the results with some settings of TReg."""
    chosen = json.loads(settings)
    return ", ".join(f"{name}: {value}" for name, value in chosen.items()) or "default: from the classical image"


def main() -> None:
    """Measure, or print and draw what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--settings", default="{}", help="settings of TReg beside the preset, as JSON")
    parser.add_argument("--per-subject", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.slices is None) == (arguments.tables is None):
        parser.error("give either --slices or --tables")
    if arguments.tables:
        rows = [row for file in arguments.tables for row in json.loads(file.read_text(encoding="utf-8"))]
        parts = {s: [row for row in rows if row["settings"] == s] for s in dict.fromkeys(r["settings"] for r in rows)}
        for settings, part in parts.items():
            print(f"\n## {title(settings)}\n")
            print_tables(part)
        if arguments.figure:
            draw(parts, arguments.figure)
        return
    torch.set_num_threads(arguments.threads)
    slices = CaptionedSlices.load(arguments.slices, arguments.split, subjects_only="ms_")
    prior, rows = LatentPrior.from_pretrained(), []
    for task in arguments.tasks:
        rows += rows_of(task, prior, slices, arguments)
        if arguments.out:
            arguments.out.write_text(json.dumps(rows), encoding="utf-8")
        print_tables([row for row in rows if row["task"] == task])


if __name__ == "__main__":
    main()

"""What words are worth where they speak: inside lesions, with the right, no, the wrong-side and the "no lesion" text.

    python benchmarks/lesion_words.py --slices brain_mr_stroke_slices_2d.h5 --subjects 40 --out rows.json
    python benchmarks/lesion_words.py --tables rows.json

One axial or coronal slice a subject with an expert lesion of one side, one coil, random columns (R=8, 12 and 16), noise
35 dB below the image maximum. *From the classical image*: TReg as it is; *from noise*: the mean of TReg's draws that
start from noise. Contrast is the mean of the lesion over that of its mirror image on the other side, minus one, as a
share of that in the reference; the error is the rms inside the mask, as a share of the mean there. Intervals:
95 %, over subjects, bootstrap.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mri_quality import Case, cases
from torch import Tensor

from treg_med.priors import LatentPrior
from treg_med.solvers import get_solver
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import counterfactuals

ACCELERATIONS = (8, 12, 16)
STARTS = ("classical", "noise")
TEXTS = ("right", "empty", "wrong side", "no lesion")
_LEAST_AREA = 60


def lesion_slices(path: Path, split: str, subjects: int) -> CaptionedSlices:
    """One slice of evenly spaced subjects, with a lesion of one side that is not tiny."""
    slices = CaptionedSlices.load(path, split)
    area = (slices.masks > 0).flatten(1).sum(1)
    first: dict[str, int] = {}
    for i, a in enumerate(slices.attributes):
        if a.side in ("left", "right") and a.plane in ("axial", "coronal") and area[i] >= _LEAST_AREA:
            first.setdefault(slices.subjects[i], i)
    rows = list(first.values())
    count = min(subjects, len(rows))
    return slices.take([rows[int((k + 0.5) * len(rows) / count)] for k in range(count)])


def measures(image: Tensor, case: Case, mask: Tensor) -> dict[str, float]:
    """Contrast as a share of the reference's, and rms error inside the lesion."""
    found, true = (contrast(x, mask) for x in (image.abs(), case.reference))
    error = (image.abs() - case.reference)[mask].square().mean().sqrt() / case.reference[mask].mean()
    return {"contrast": found / true, "true_contrast": true, "error": float(error)}


def contrast(image: Tensor, mask: Tensor) -> float:
    """Mean of a lesion over the mean of its mirror image in the head, minus one."""
    seen = (image > 0.1 * image.max()).any(0).nonzero().flatten()
    middle = int(seen[0] + seen[-1])
    columns = (middle - torch.arange(image.shape[1])).clamp(0, image.shape[1] - 1)
    other = mask[:, columns] & ~mask
    return float(image[mask].mean() / image[other].mean() - 1)


def measure(slices: CaptionedSlices, prior: LatentPrior, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Reconstruct every slice with every text."""
    rows = []
    for acceleration in arguments.accelerations:
        for number, (case, mask) in enumerate(zip(of_all(slices, acceleration), slices.masks, strict=True)):
            texts = {
                "right": case.caption,
                "empty": "",
                "wrong side": counterfactuals(case.caption, "side")[0],
                "no lesion": counterfactuals(case.caption, "finding")[0],
            }
            for start in arguments.starts:
                draws = arguments.draws if start == "noise" else 1
                solver = get_solver("treg", **({"start": "noise"} if start == "noise" else {}))
                for name, text in texts.items():
                    images = [
                        solver(
                            case.measurement, prior=prior, text=text,
                            generator=torch.Generator().manual_seed(1000 * number + k),
                        ).image
                        for k in range(draws)
                    ]  # fmt: skip
                    row = {"R": acceleration, "start": start, "text": name, "subject": case.subject, "draws": draws}
                    mean = torch.stack(images).abs().mean(0)
                    rows.append(row | measures(mean, case, mask[0] > 0))
    return rows


def of_all(slices: CaptionedSlices, acceleration: int) -> list[Case]:
    """One case a slice, in the order of the slices."""
    found = {case.subject: case for case in cases(slices, 1, 1, acceleration)}
    return [found[subject] for subject in slices.subjects]


def interval(values: list[float]) -> str:
    """Mean with its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (4000, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Print one row per start and acceleration: what every text gives, and what the right one is worth."""
    print("| start | R | subjects | " + " | ".join(f"contrast, {t}" for t in TEXTS), end=" | ")
    print(" | ".join(f"error, right minus {t}" for t in TEXTS[1:]) + " |\n|---|--:|--:|" + 7 * "--:|")
    for start, acceleration in sorted({(row["start"], row["R"]) for row in rows}):
        found = {
            (row["text"], row["subject"]): row for row in rows if (row["start"], row["R"]) == (start, acceleration)
        }
        subjects = sorted({subject for _, subject in found})
        cells = [interval([found[text, s]["contrast"] for s in subjects]) for text in TEXTS]
        cells += [interval([found["right", s]["error"] - found[t, s]["error"] for s in subjects]) for t in TEXTS[1:]]
        print(f"| {start} | {acceleration} | {len(subjects)} | {' | '.join(cells)} |")


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+")
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--accelerations", type=int, nargs="+", default=list(ACCELERATIONS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--draws", type=int, default=8, help="draws from noise that are averaged")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.slices is None) == (arguments.tables is None):
        parser.error("give either --slices or --tables")
    torch.set_num_threads(arguments.threads)
    if arguments.tables:
        print_tables([row for file in arguments.tables for row in json.loads(file.read_text(encoding="utf-8"))])
        return
    slices = lesion_slices(arguments.slices, arguments.split, arguments.subjects)
    rows = measure(slices, LatentPrior.from_pretrained(arguments.prior), arguments)
    print_tables(rows)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Every method on the same slices of unseen subjects: four MR acquisitions, inpainting and super-resolution.

    python benchmarks/solvers.py --slices brain_mr_slices_2d.h5 --per-subject 8 --out rows.json
    python benchmarks/solvers.py --tables rows.json

MR as in mri_quality.py; inpainting keeps half of the pixels at random, super-resolution means over 4 x 4 pixels; both
with noise 35 dB below the image maximum. Every method runs with its default preset, or the one behind the colon, in a
process of its own, so that the peak of its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mri_quality import NOISE_STD, Case, by_subject, cases, score

from treg_med.data.records import Measurement
from treg_med.operators import Inpainting, LinearOperator, SuperResolution, gaussian_noise, random_pixel_mask
from treg_med.priors import LatentPrior
from treg_med.solvers import get_solver
from treg_med.training.slices import CaptionedSlices

METHODS = (
    "zero-filled",
    "tv",
    "treg",
    "diffpir",
    "dds",
    "mpgd",
    "ldps",
    "psld",
    "p2l",
    "resample",
    "projdiff",
)
MR = {"1 coil, R=4": (1, 4), "1 coil, R=8": (1, 8), "8 coils, R=4": (8, 4), "8 coils, R=8": (8, 8)}
TASKS = (*MR, "inpainting 50 %", "super-resolution x4")


def measured(task: str, slices: CaptionedSlices, per_subject: int) -> Iterator[Case]:
    """Slices of every subject, measured as a task says."""
    if task in MR:
        yield from cases(slices, per_subject, *MR[task])
        return
    if task.startswith("super-resolution"):
        yield from blocks(slices, per_subject, 4)
        return
    yield from real_cases(
        slices,
        per_subject,
        lambda shape, generator: Inpainting(random_pixel_mask(shape, 0.5, generator=generator)),
    )


def blocks(slices: CaptionedSlices, per_subject: int, factor: int) -> Iterator[Case]:
    """Slices of every subject as means over blocks of pixels."""
    return real_cases(slices, per_subject, lambda shape, _: SuperResolution(shape, factor))


def real_cases(
    slices: CaptionedSlices,
    per_subject: int,
    make: Callable[[tuple[int, int], torch.Generator], LinearOperator],
) -> Iterator[Case]:
    """The same slices as for MR, without its phase, under a forward model made for each."""
    for number, case in enumerate(cases(slices, per_subject, 1, 4)):
        generator = torch.Generator().manual_seed(2000 + number)
        operator = make((case.reference.shape[0], case.reference.shape[1]), generator)
        noise = gaussian_noise(operator.range_shape, NOISE_STD, generator)
        y = operator(case.reference) + noise * getattr(operator, "mask", 1.0)
        measurement = Measurement(y=y, operator=operator, noise_std=NOISE_STD, provenance={"simulated": True})
        yield Case(measurement, case.reference, case.subject, case.caption, case.peak)


def rows_of(method: str, task: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one method on all slices of one task."""
    torch.set_num_threads(arguments.threads)
    slices = CaptionedSlices.load(arguments.slices, arguments.split, subjects_only="ms_")
    prior = LatentPrior.from_pretrained(arguments.prior)
    name, _, preset = method.partition(":")
    solver = get_solver(name, preset or "default")
    rows = []
    for number, case in enumerate(measured(task, slices, arguments.per_subject)):
        start = time.process_time()
        rec = solver(
            case.measurement,
            prior=prior,
            text=case.caption,
            generator=torch.Generator().manual_seed(number),
        )
        psnr, ssim = score(rec.image, case)
        rows.append(
            {
                "method": method,
                "task": task,
                "subject": case.subject,
                "psnr": psnr,
                "ssim": ssim,
                "residual": rec.residual,
                "nfe": rec.nfe,
                "seconds": time.process_time() - start,
                "peak_mib": rec.peak_memory_mb,
            }
        )
    return rows


HEAD = "| method | PSNR dB | SSIM | residual | NFE | s | peak MiB |\n|---|--:|--:|--:|--:|--:|--:|"


def line(method: str, rows: list[dict[str, Any]]) -> str:
    """One row of the table: mean and standard error over subjects, means over slices, the largest peak."""
    subjects = [row["subject"] for row in rows]
    psnr, ssim = (by_subject([row[key] for row in rows], subjects) for key in ("psnr", "ssim"))
    residual, nfe, seconds = (np.mean([row[key] for row in rows]) for key in ("residual", "nfe", "seconds"))
    peak = max(row["peak_mib"] for row in rows)
    return f"| {method} | {psnr} | {ssim} | {residual:.2f} | {nfe:.0f} | {seconds:.1f} | {peak:.0f} |"


def tables(files: list[Path]) -> None:
    """Print the tables of rows saved before, the best method of each task first."""
    records = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    for task in TASKS:
        by_method: dict[str, list[dict[str, Any]]] = {}
        for row in records:
            if row["task"] == task:
                by_method.setdefault(row["method"], []).append(row)
        if not by_method:
            continue
        print(f"\n## {task}\n\n{HEAD}")
        for method in sorted(by_method, key=lambda name: -np.mean([row["psnr"] for row in by_method[name]])):
            print(line(method, by_method[method]))


def run(arguments: argparse.Namespace) -> None:
    """Print one table per task and write all rows as JSON."""
    records = []
    for task in arguments.tasks:
        print(f"\n## {task}\n\n{HEAD}", flush=True)
        for method in arguments.methods:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows = pool.submit(rows_of, method, task, arguments).result()
            records += rows
            print(line(method, rows), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+", help="print the tables of files written with --out")
    parser.add_argument("--split", default="val")
    parser.add_argument("--prior", type=Path, default=None)
    parser.add_argument("--per-subject", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if (chosen.slices is None) == (chosen.tables is None):
        parser.error("give either --slices or --tables")
    tables(chosen.tables) if chosen.tables else run(chosen)

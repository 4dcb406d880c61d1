"""Every method on the same slices of unseen subjects: four MR acquisitions, inpainting and super-resolution.

    python benchmarks/solvers.py --slices brain_mr_slices_2d.h5 --per-subject 8

MR as in mri_quality.py; inpainting keeps half of the pixels at random, super-resolution means over 4 x 4 pixels; both
with noise 35 dB below the image maximum. Every method runs with its default preset, or the one behind the colon, in a
process of its own, so that the peak of its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
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
    "dds:paper",
    "diffpir:paper",
)
MR = {"1 coil, R=4": (1, 4), "1 coil, R=8": (1, 8), "8 coils, R=4": (8, 4), "8 coils, R=8": (8, 8)}
TASKS = (*MR, "inpainting 50 %", "super-resolution x4")


def measured(task: str, slices: CaptionedSlices, per_subject: int) -> Iterator[Case]:
    """Slices of every subject, measured as a task says."""
    if task in MR:
        yield from cases(slices, per_subject, *MR[task])
        return
    # The same slices as for MR, without its phase.
    for number, case in enumerate(cases(slices, per_subject, 1, 4)):
        generator = torch.Generator().manual_seed(2000 + number)
        shape = (case.reference.shape[0], case.reference.shape[1])
        operator: LinearOperator
        if task.startswith("inpainting"):
            operator = Inpainting(random_pixel_mask(shape, 0.5, generator=generator))
        else:
            operator = SuperResolution(shape, 4)
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


def run(arguments: argparse.Namespace) -> None:
    """Print one table per task and write all rows as JSON."""
    records = []
    for task in arguments.tasks:
        print(f"\n## {task}\n\n| method | PSNR dB | SSIM | residual | NFE | s | peak MiB |", flush=True)
        print("|---|--:|--:|--:|--:|--:|--:|", flush=True)
        for method in arguments.methods:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows = pool.submit(rows_of, method, task, arguments).result()
            records += rows
            subjects = [row["subject"] for row in rows]
            psnr, ssim = (by_subject([row[key] for row in rows], subjects) for key in ("psnr", "ssim"))
            mean = {key: float(np.mean([row[key] for row in rows])) for key in ("residual", "nfe", "seconds")}
            peak = max(row["peak_mib"] for row in rows)
            print(
                f"| {method} | {psnr} | {ssim} | {mean['residual']:.2f} | {mean['nfe']:.0f} | {mean['seconds']:.1f} "
                f"| {peak:.0f} |",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--prior", type=Path, default=None)
    parser.add_argument("--per-subject", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    run(parser.parse_args())

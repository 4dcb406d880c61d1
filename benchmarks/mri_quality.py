"""Reconstruction quality on slices simulated from unseen subjects, every method beside its controls.

    python benchmarks/mri_quality.py --slices brain_mr_slices_2d.h5 --per-subject 8
    python benchmarks/mri_quality.py --slices brain_mr_stroke_slices_2d.h5 --subjects "" --most-subjects 30 \\
        --per-subject 1
    python benchmarks/mri_quality.py --slices brain_mr_volunteer_slices_2d.h5 --subjects ixi_ --per-subject 1 --blocks 2

Cartesian 256x256, random columns (R=4 with 8 % and R=8 with 4 % centre), one coil or eight simulated coils with known
maps, complex noise 35 dB below the image maximum, smooth random phase. The k-space is computed from magnitude images:
an inverse crime. PSNR and SSIM follow the fastMRI protocol (range: maximum of the volume, here of the subject's slices;
7x7 uniform SSIM); mean and standard error are taken over slices within a subject, then over subjects.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.nn import functional

from treg_med.data.records import Measurement
from treg_med.operators import CartesianMRI, birdcage_maps, complex_gaussian_noise, radial_mask, random_mask
from treg_med.priors import LatentPrior
from treg_med.solvers import get_solver
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import counterfactuals

NOISE_STD = 10 ** (-35 / 20)
CENTRE = {4: 0.08, 8: 0.04, 12: 0.03, 16: 0.025, 24: 0.02}


@dataclass(frozen=True)
class Case:
    """One simulated measurement and what is known about it."""

    measurement: Measurement
    reference: Tensor
    subject: str
    caption: str
    peak: float


def smooth_random_phase(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Phase of five by five random Fourier modes, 0.8 rad rms, plus a random constant."""
    spectrum = torch.zeros(shape, dtype=torch.complex64)
    spectrum[:5, :5] = torch.complex(
        torch.randn(5, 5, generator=generator), torch.randn(5, 5, generator=generator)
    )
    field = torch.fft.ifft2(torch.roll(spectrum, (-2, -2), (0, 1))).real
    return field / field.std() * 0.8 + 2 * math.pi * torch.rand(1, generator=generator)


def cases(
    slices: CaptionedSlices, per_subject: int, coils: int, acceleration: int, *, radial: bool = False
) -> Iterator[Case]:
    """Evenly spaced slices of every subject, measured with a mask and noise of their own; radial: that many lines."""
    for subject in sorted(set(slices.subjects)):
        rows = [i for i, s in enumerate(slices.subjects) if s == subject]
        chosen = [rows[int((k + 0.5) * len(rows) / per_subject)] for k in range(per_subject)]
        peak = float(slices.images[chosen].max()) / 255
        for i in chosen:
            generator = torch.Generator().manual_seed(1000 * acceleration + i)
            reference = slices.images[i, 0].float() / 255
            shape = (reference.shape[0], reference.shape[1])
            mask = (
                radial_mask(shape, acceleration)
                if radial
                else random_mask(shape, acceleration, CENTRE[acceleration], generator=generator)
            )
            maps = birdcage_maps(coils, shape) if coils > 1 else None
            operator = CartesianMRI(mask.mask, sensitivity_maps=maps)
            image = torch.polar(reference, smooth_random_phase(shape, generator))
            noise = complex_gaussian_noise(operator.range_shape, NOISE_STD, generator=generator)
            y = operator(image) + noise * operator.mask
            yield Case(
                Measurement(y=y, operator=operator, noise_std=NOISE_STD, provenance={"simulated": True}),
                reference,
                subject,
                slices.captions[i],
                peak,
            )


def score(image: Tensor, case: Case) -> tuple[float, float]:
    """PSNR in dB and SSIM of the magnitude."""
    prediction, reference = image.abs().numpy(), case.reference.numpy()
    psnr = peak_signal_noise_ratio(reference, prediction, data_range=case.peak)
    return float(psnr), float(structural_similarity(reference, prediction, data_range=case.peak))


def methods(prior: LatentPrior, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Row name to (solver, text of a case)."""
    rows: dict[str, tuple[Any, Any]] = {
        name: (get_solver(name), lambda _: None) for name in ("zero-filled", "cg-sense", "wavelet", "tv")
    }
    treg = get_solver("treg", **settings)
    rows["treg, prior removed (control)"] = (get_solver("treg", **settings, use_prior=False), lambda _: None)
    rows["treg, empty text"] = (treg, lambda _: "")
    rows["treg, wrong contrast"] = (treg, lambda case: counterfactuals(case.caption, "contrast")[0])
    rows["treg, right text"] = (treg, lambda case: case.caption)
    return rows


def by_subject(values: list[float], subjects: list[str]) -> str:
    """Mean over subjects and its standard error over subjects."""
    means = [
        np.mean([v for v, s in zip(values, subjects, strict=True) if s == name])
        for name in sorted(set(subjects))
    ]
    error = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else float("nan")
    return f"{np.mean(means):.3f} ± {error:.3f}"


def chosen_slices(arguments: argparse.Namespace) -> CaptionedSlices:
    """Slices of evenly spaced subjects; with blocks of pixels averaged, where they were stored finer than scanned."""
    slices = CaptionedSlices.load(arguments.slices, arguments.split, subjects_only=arguments.subjects)
    names = sorted(set(slices.subjects))
    count = min(arguments.most_subjects or len(names), len(names))
    kept = {names[int((k + 0.5) * len(names) / count)] for k in range(count)}
    slices = slices.take([i for i, name in enumerate(slices.subjects) if name in kept])
    if arguments.blocks == 1:
        return slices
    images, masks = (
        functional.avg_pool2d(x.float(), arguments.blocks).round().to(torch.uint8)
        for x in (slices.images, slices.masks)
    )
    return replace(slices, images=images, masks=masks)


def run(arguments: argparse.Namespace) -> None:
    """Print one table per acquisition and write all rows as JSON."""
    torch.set_num_threads(arguments.threads)
    slices = chosen_slices(arguments)
    prior = LatentPrior.from_pretrained(arguments.prior)
    records = []
    for coils in arguments.coils:
        for acceleration in arguments.accelerations:
            print(f"\n### {coils} coil{'s' * (coils > 1)}, R={acceleration}\n")
            print(
                "| method | PSNR dB | SSIM | residual (noise units) | minus control dB | s |\n"
                "|---|--:|--:|--:|--:|--:|",
                flush=True,
            )
            control: list[float] = []
            measured = list(cases(slices, arguments.per_subject, coils, acceleration))
            subjects = [case.subject for case in measured]
            rows_asked = {
                name: row
                for name, row in methods(prior, json.loads(arguments.settings)).items()
                if "control" in name or name.startswith(arguments.only)
            }
            for name, (solver, text) in rows_asked.items():
                rows = []
                for number, case in enumerate(measured):
                    start = time.process_time()
                    rec = solver(
                        case.measurement,
                        prior=prior,
                        text=text(case),
                        generator=torch.Generator().manual_seed(number),
                    )
                    psnr, ssim = score(rec.image, case)
                    rows.append(
                        {
                            "method": name,
                            "coils": coils,
                            "R": acceleration,
                            "subject": case.subject,
                            "psnr": psnr,
                            "ssim": ssim,
                            "residual": rec.residual,
                            "seconds": time.process_time() - start,
                        }
                    )
                records += rows
                psnrs = [row["psnr"] for row in rows]
                control = psnrs if "control" in name else control
                gain = (
                    by_subject([a - b for a, b in zip(psnrs, control, strict=True)], subjects)
                    if control
                    else "-"
                )
                mean = {key: float(np.mean([row[key] for row in rows])) for key in ("residual", "seconds")}
                print(
                    f"| {name} | {by_subject(psnrs, subjects)} | {by_subject([r['ssim'] for r in rows], subjects)} "
                    f"| {mean['residual']:.2f} | {gain} | {mean['seconds']:.1f} |",
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
    parser.add_argument("--subjects", default="ms_", help="start of the names of the subjects")
    parser.add_argument("--most-subjects", type=int, default=0, help="evenly spaced ones; 0: all")
    parser.add_argument("--blocks", type=int, default=1, help="side of blocks of pixels that are averaged")
    parser.add_argument("--prior", type=Path, default=None)
    parser.add_argument("--per-subject", type=int, default=8)
    parser.add_argument("--coils", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--accelerations", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--only", default="", help="rows whose name starts so, and the control")
    parser.add_argument("--settings", default="{}", help="TReg settings as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    run(parser.parse_args())

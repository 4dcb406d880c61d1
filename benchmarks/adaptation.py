"""Adapted and unadapted prior on simulated single-coil k-space of slices it was not adapted to, beside two-stage TV.

    python benchmarks/adaptation.py --slices slices.h5 --adapter ct_vae --adapter ct_unet --count 4

Acquisition, noise and scores are those of `mri_quality.py` (R=4). The slices are evenly spaced over the val split, one
per subject. With CT slices the k-space is that of no scanner: the table tells what a prior is worth, not how to
reconstruct CT.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from mri_quality import cases, score

from treg_med.priors import LatentPrior
from treg_med.solvers import get_solver
from treg_med.training.slices import CaptionedSlices


def chosen_slices(path: Path, images: str, count: int) -> CaptionedSlices:
    """One slice of each of `count` val subjects, the middle one of those it has."""
    slices = CaptionedSlices.load(path, "val", images=images)
    subjects = sorted(set(slices.subjects))
    rows = [[i for i, s in enumerate(slices.subjects) if s == name] for name in subjects]
    return slices.take([r[len(r) // 2] for r in rows]).evenly(count)


def run(arguments: argparse.Namespace) -> None:
    """Print one table per dataset of images."""
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("error", UserWarning)  # an adapter of another prior must not go into a table
    priors = {
        "base": LatentPrior.from_pretrained(arguments.prior),
        "adapted": LatentPrior.from_pretrained(arguments.prior, adapter=arguments.adapter),
    }
    for images in arguments.images:
        slices = chosen_slices(arguments.slices, images, arguments.count)
        measured = list(cases(slices, 1, 1, 4))
        rows: dict[str, list[tuple[float, float]]] = {"two-stage TV": []}
        rows |= {f"TReg, {name} prior": [] for name in priors}
        for number, case in enumerate(measured):
            rec = get_solver("tv")(case.measurement, generator=torch.Generator().manual_seed(number))
            rows["two-stage TV"].append(score(rec.image, case))
            for name, prior in priors.items():
                rec = get_solver("treg")(
                    case.measurement,
                    prior=prior,
                    text=case.caption,
                    generator=torch.Generator().manual_seed(number),
                )
                rows[f"TReg, {name} prior"].append(score(rec.image, case))
        print(f"\n### {images}: {len(measured)} slices, 1 coil, R=4\n")
        names = " | ".join(f"slice {k + 1}" for k in range(len(measured)))
        print(f"| method | PSNR dB | SSIM | {names} |\n|---|--:|--:|" + "--:|" * len(measured))
        for name, scores in rows.items():
            psnr, ssim = np.mean(scores, axis=0)
            each = " | ".join(f"{value:.2f}" for value, _ in scores)
            print(f"| {name} | {psnr:.2f} | {ssim:.3f} | {each} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path, required=True)
    parser.add_argument("--images", nargs="+", default=["images"])
    parser.add_argument("--prior", type=Path, help="default: the embedded one")
    parser.add_argument("--adapter", type=Path, action="append", required=True, help="may be repeated")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    run(parser.parse_args())

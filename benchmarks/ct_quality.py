"""How well CT is reconstructed: measured scans of acrylic discs, and slices of patients simulated at 60 views.

    python benchmarks/ct_quality.py discs DIR --out benchmarks/ct_discs.md
    python benchmarks/ct_quality.py slices FILE --out benchmarks/ct_slices.md

DIR holds the scans htc2022_01a.h5, htc2022_03b.h5 and htc2022_04c.h5 of the Helsinki Tomography Challenge 2022 (doi
10.5281/zenodo.8041800) with their reference images; FILE captioned CT slices as `treg-med train prepare` writes them.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity
from torch import Tensor

import treg_med
from treg_med.data import Measurement, open_scan
from treg_med.data.ct_assemble import assemble_ct
from treg_med.data.ct_simulation import CTSimulation
from treg_med.data.orientation import unknown_geometry
from treg_med.operators import MU_WATER, attenuation, hounsfield

COMMAND = "python benchmarks/ct_quality.py"
DISCS = ("01a", "03b", "04c")
# Views and arc in degrees of every case.
CASES: dict[str, dict[str, Any]] = {
    "full circle, 720 views": {},
    "arc of 90 degrees": {"arc": 90},
    "arc of 60 degrees": {"arc": 60},
    "arc of 40 degrees": {"arc": 40},
    "arc of 30 degrees": {"arc": 30},
    "60 views": {"views": 60},
    "30 views": {"views": 30},
    "15 views": {"views": 15},
}
DISC_METHODS = ("fbp", "tv", "pwls-tv")
SLICE_METHODS = (
    "fbp", "fbp, hann", "sirt", "cgls", "tv", "pwls-tv",
    "treg, prior removed", "diffpir", "dds", "treg, no text", "treg",
)  # fmt: skip
# Rows of the tables that are a solver with a setting.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fbp, hann": ("fbp", {"filter": "hann"}),
    "treg, prior removed": ("treg", {"preset": "ct", "use_prior": False}),
    "treg, no text": ("treg", {"preset": "ct"}),
    "treg": ("treg", {"preset": "ct"}),
    "dds": ("dds", {"preset": "ct"}),
}
WIDE, SOFT = (-1000.0, 1000.0), (-160.0, 240.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("discs", "slices"))
    parser.add_argument("data", type=Path, metavar="DIR or FILE")
    parser.add_argument("--out", type=Path, required=True, help="table in Markdown; the picture goes beside it")
    parser.add_argument("--methods", nargs="*", help="default: all of the part")
    parser.add_argument("--split", default="val", help="patients of the slices")
    parser.add_argument("--per-patient", type=int, default=2, help="slices of each patient")
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--photons", type=float, default=4e3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = discs(options) if options.part == "discs" else slices(options)
    options.out.write_text("\n".join(lines) + "\n")


def reconstruct(measurement: Measurement, method: str, text: str | None) -> treg_med.Reconstruction:
    """Run a method by its name in the tables."""
    solver, settings = VARIANTS.get(method, (method, {}))
    told = None if method.endswith("no text") else text
    return treg_med.reconstruct(measurement, text=told, solver=solver, seed=0, device="cpu", **settings)


def discs(options: argparse.Namespace) -> list[str]:
    """Correlation with the reference and Matthews coefficient of the holes, mean of the discs."""
    methods = options.methods or DISC_METHODS
    scores: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    shown: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
    for disc in DISCS:
        path = options.data / f"htc2022_{disc}.h5"
        with h5py.File(path) as file:
            truth = file["reference_segmentation"][...].astype(bool)
            reference = file["reference_fbp"][...].astype(np.float32)
        for case, selection in CASES.items():
            with open_scan(path, **selection) as scan:
                measurement = scan[0]
            for method in methods:
                start = time.process_time()
                image = reconstruct(measurement, method, None).image.numpy()
                seconds = time.process_time() - start
                likeness = float(np.corrcoef(image.ravel(), reference.ravel())[0, 1])
                scores[case, method].append((likeness, matthews(image > threshold_otsu(image), truth), seconds))
                print(disc, case, method, *(f"{v:.4f}" for v in scores[case, method][-1]), flush=True)
                if disc == DISCS[-1]:
                    shown[case, method] = image
    gallery(options.out.with_suffix(".png"), shown, (0.0, 0.06))
    table = [
        "# Acrylic discs from measured projections",
        "",
        f"    {COMMAND} discs DIR --out benchmarks/{options.out.name}",
        "",
        f"Means of the discs {', '.join(DISCS)} of the Helsinki Tomography Challenge 2022 (Meaney et al., doi",
        "10.5281/zenodo.8041800, CC BY 4.0): fan beam, 560 bins, 512 x 512 pixels, arcs from angle 0 in steps of 0.5",
        "degrees. MCC: Matthews correlation of the image above Otsu's threshold with the reference segmentation. r:",
        "correlation with the reference image, itself a filtered backprojection of all views. s: CPU seconds.",
        f"{machine(options.threads)}",
        "",
        "| case | " + " | ".join(f"{m}: MCC | r | s" for m in methods) + " |",
        "|---" + "|--:|--:|--:" * len(methods) + "|",
    ]
    for case in CASES:
        means = [np.mean(scores[case, method], axis=0) for method in methods]
        table.append(f"| {case} | " + " | ".join(f"{m:.3f} | {r:.4f} | {s:.1f}" for r, m, s in means) + " |")
    return table


def matthews(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Matthews correlation coefficient of two masks."""
    both, only, missed = (float(v.sum()) for v in (found & truth, found & ~truth, ~found & truth))
    neither = found.size - both - only - missed
    scale = math.sqrt((both + only) * (both + missed) * (neither + only) * (neither + missed))
    return (both * neither - only * missed) / scale if scale else 0.0


def slices(options: argparse.Namespace) -> list[str]:
    """Errors in Hounsfield units of every method, means of the patients with their standard errors."""
    methods = options.methods or SLICE_METHODS
    rows: dict[str, dict[str, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
    shown: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
    simulation = CTSimulation(views=options.views, photons=options.photons)
    chosen = patients(options.data, options.split, options.per_patient)
    for number, (subject, caption, hu, spacing) in enumerate(chosen):
        measurement = scanned(simulation, hu, spacing, number)
        for method in methods:
            result = reconstruct(measurement, method, caption)
            image = hounsfield(result.image, MU_WATER)
            score = errors(image, hu) | {"residual": result.residual, "s": result.seconds}
            rows[method][subject].append(score)
            print(subject, caption[:40], method, {k: round(v, 3) for k, v in score.items()}, flush=True)
            if number % 4 == 1 and len({case for case, _ in shown}) <= 3:
                shown[f"{subject}", "target"] = hu.numpy()
                shown[f"{subject}", method] = image.numpy()
    gallery(options.out.with_suffix(".png"), shown, SOFT)
    names = list(next(iter(next(iter(rows.values())).values()))[0])
    count = sum(len(v) for v in rows[methods[0]].values())
    table = [
        f"# CT slices of patients at {options.views} views and {options.photons:g} photons a ray",
        "",
        f"    {COMMAND} slices FILE --per-patient {options.per_patient} --out benchmarks/{options.out.name}",
        "",
        f"{count} slices of {len(rows[methods[0]])} patients ({options.split}). Scan: two lines a bin, Poisson",
        "counts; reconstruction: strips. RMSE in HU over the slice and soft tissue (-160 to 240 HU); PSNR and",
        "SSIM over -1000 to 1000 HU; residual in units of the noise; the prior's methods have the slice's",
        "caption as text. Mean of the patients and its standard error.",
        "Picture: Lung-Fused-CT-Pathology and TCGA-LUAD (The Cancer Imaging Archive, CC BY), -160 to 240 HU.",
        machine(options.threads),
        "",
        "| method | " + " | ".join(names) + " |",
        "|---" + "|--:" * len(names) + "|",
    ]
    for method in methods:
        means = np.array([[np.mean([s[name] for s in v]) for name in names] for v in rows[method].values()])
        spread = means.std(0, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else np.zeros(len(names))
        pairs = zip(means.mean(0), spread, strict=True)
        cells = [f"{m:.3f} ± {e:.3f}" if m < 3 else f"{m:.1f} ± {e:.1f}" for m, e in pairs]
        table.append(f"| {method} | " + " | ".join(cells) + " |")
    return table


def patients(path: Path, split: str, each: int) -> Iterator[tuple[str, str, Tensor, float]]:
    """Give subject, caption, image in HU and pixel size of a few slices of every patient, spread over the body."""
    with h5py.File(path) as file:
        subjects, splits = (file[name].asstr()[...] for name in ("subject", "split"))
        for subject in sorted(set(subjects[splits == split])):
            mine = np.flatnonzero((subjects == subject) & (splits == split))
            for index in mine[np.linspace(0, len(mine) - 1, min(each, len(mine))).round().astype(int)]:
                hu = torch.from_numpy(file["images"][int(index)].astype(np.float32)) / 255 * 2000 - 1000
                spacing = float(file["pixel_spacing_mm"][int(index)])
                yield subject, file["captions"].asstr()[int(index)], hu, spacing if spacing > 0 else 1.5


def scanned(simulation: CTSimulation, hu: Tensor, spacing: float, number: int) -> Measurement:
    """Simulate the scan of a slice."""
    shape = (hu.shape[0], hu.shape[1])
    mu = attenuation(hu, MU_WATER)
    taken = simulation.slice(mu, number, simulation.fine_operator(shape, spacing))
    return assemble_ct(
        taken.sinogram,
        simulation.operator(shape, spacing),
        index=0,
        geometry=unknown_geometry((*shape, 1), (spacing, spacing, 1.0)),
        provenance={"simulated": True, "warnings": ()},
        inverse_variance=taken.inverse_variance,
        target=mu,
        mu_water=MU_WATER,
        photons=simulation.photons,
        starved=taken.starved,
    )


def errors(image: Tensor, truth: Tensor) -> dict[str, float]:
    """Errors of an image in HU."""
    away = (image - truth).square()
    soft = (truth > SOFT[0]) & (truth < SOFT[1])
    span = WIDE[1] - WIDE[0]
    ssim = structural_similarity(truth.numpy(), image.clamp(*WIDE).numpy(), data_range=span)
    return {
        "RMSE HU": float(away.mean().sqrt()),
        "RMSE soft tissue HU": float(away[soft].mean().sqrt()),
        "PSNR dB": 10 * math.log10(span**2 / float(away.mean())),
        "SSIM": float(ssim),
    }


def gallery(path: Path, images: Mapping[tuple[str, str], npt.NDArray[np.float32]], window: Sequence[float]) -> None:
    """Draw cases as rows and methods as columns."""
    cases, methods = (list(dict.fromkeys(key[i] for key in images)) for i in (0, 1))
    figure, axes = plt.subplots(
        len(cases), len(methods), figsize=(1.7 * len(methods), 1.75 * len(cases)), squeeze=False, layout="constrained"
    )
    for row, case in zip(axes, cases, strict=True):
        for axis, method in zip(row, methods, strict=True):
            axis.imshow(images[case, method], cmap="gray", vmin=window[0], vmax=window[1])
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(case, fontsize=7)
    for axis, method in zip(axes[0], methods, strict=True):
        axis.set_title(method, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def machine(threads: int) -> str:
    return f"treg-med {treg_med.__version__}, torch {torch.__version__}, {platform.machine()} CPU, {threads} thread(s)."


if __name__ == "__main__":
    main()

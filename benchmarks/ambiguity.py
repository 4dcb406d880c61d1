"""Phase retrieval, where an image and its half turn give the same data: the words choose between them.

    python benchmarks/ambiguity.py --figure notebooks/figures/ambiguity.png > benchmarks/ambiguity.md
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from treg_med.data.records import Measurement
from treg_med.operators import FourierMagnitude, gaussian_noise
from treg_med.priors import GaussianMixturePrior
from treg_med.solvers import get_solver

SIDE, NOISE, STEPS = 32, 0.01, 50
WORDS = ("", "upright", "turned")
TEXT = f"""# Where words decide: phase retrieval

    python benchmarks/ambiguity.py --figure notebooks/figures/ambiguity.png > benchmarks/ambiguity.md

Data are magnitudes |F P x| of the oversampled Fourier transform, noise {NOISE}. An image and the same turned by half a
circle give the same data, whatever the oversampling. Images of {SIDE} x {SIDE} pixels are drawn from an exact prior of
two modes, a drawn head and its half turn, with a smooth variation of 0.1; without a word both are equally likely, a
word names one. The truth is upright in every problem. Method: `ldps`, {STEPS} steps, from noise.

*upright*: the draw is nearer to the truth than to its half turn. The embedded prior could not show this: it has seen
heads upright only and needs no word to choose.

| text | upright draws | rms to the nearer | rms to the other | residual |
|---|--:|--:|--:|--:|"""


@dataclass(frozen=True)
class Draw:
    """A truth, what was drawn, and the misfit in noise units."""

    truth: Tensor
    image: Tensor
    residual: float

    @property
    def distances(self) -> tuple[float, float]:
        """Root-mean-square distances to the truth and to its half turn."""
        away = (self.image - self.truth, self.image - self.truth.rot90(2))
        upright, turned = (float(error.square().mean().sqrt()) for error in away)
        return upright, turned

    @property
    def upright(self) -> bool:
        """Whether the draw is nearer to the truth than to its half turn."""
        return self.distances[0] < self.distances[1]


def head() -> Tensor:
    """A head of ellipses with one bright lesion, in [0, 1]."""
    axis = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")

    def ellipse(row: float, column: float, tall: float, wide: float) -> Tensor:
        return (((rows - row) / tall).square() + ((columns - column) / wide).square() < 1).double()

    tissue = 0.75 * ellipse(0, 0, 0.85, 0.65) - 0.2 * ellipse(0, 0, 0.75, 0.56)
    ventricles = ellipse(-0.05, 0.15, 0.25, 0.1) + ellipse(-0.05, -0.15, 0.25, 0.1)
    return tissue - 0.3 * ventricles + 0.35 * ellipse(-0.4, 0.25, 0.12, 0.12)


def draws(seeds: int) -> dict[str, list[Draw]]:
    """Solve the same problems with every word."""
    index = torch.arange(SIDE, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(index, index, indexing="ij"), -1).reshape(-1, 2)
    covariance = 0.1**2 * torch.exp(-torch.cdist(points, points) / 3) + 1e-4 * torch.eye(SIDE**2, dtype=torch.float64)
    mean, factor = 2 * head() - 1, torch.linalg.cholesky(covariance)
    weights = {"": (0.5, 0.5), "upright": (1.0, 0.0), "turned": (0.0, 1.0)}
    prior = GaussianMixturePrior(torch.stack([mean, mean.rot90(2)]), weights, covariance)
    operator, solver = FourierMagnitude((SIDE, SIDE)), get_solver("ldps", steps=STEPS)
    found: dict[str, list[Draw]] = {word: [] for word in WORDS}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        variation = factor @ torch.randn(SIDE**2, generator=generator, dtype=torch.float64)
        truth = (mean + variation.reshape(SIDE, SIDE) + 1) / 2
        y = operator(truth) + gaussian_noise(operator.range_shape, NOISE, generator).double()
        measurement = Measurement(y=y, operator=operator, noise_std=NOISE, provenance={"simulated": True})
        for word in WORDS:
            rec = solver(measurement, prior=prior, text=word, generator=torch.Generator().manual_seed(100 + seed))
            found[word].append(Draw(truth, rec.image, rec.residual))
    return found


def draw_figure(found: dict[str, list[Draw]], path: Path) -> None:
    """Show one truth, its half turn, and the first draws under every word."""
    columns = 6
    figure = Figure(figsize=(1.5 * columns, 5.2), layout="constrained")
    axes = figure.subplots(len(WORDS), columns)
    for word, row in zip(WORDS, axes, strict=True):
        first = found[word][0].truth
        pictures = [("truth", first), ("same data", first.rot90(2))]
        pictures += [(f"seed {seed}", draw.image) for seed, draw in enumerate(found[word][: columns - 2])]
        for axis, (title, picture) in zip(row, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        upright = sum(draw.upright for draw in found[word])
        label = f'"{word}"' if word else "no word"
        row[0].set_ylabel(f"{label}\n{upright} of {len(found[word])} upright", fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the table and write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    found = draws(arguments.seeds)
    print(TEXT)
    for word, drawn in found.items():
        distances = torch.tensor([draw.distances for draw in drawn])
        upright = sum(draw.upright for draw in drawn)
        near, far = distances.amin(1).mean(), distances.amax(1).mean()
        residual = sum(draw.residual for draw in drawn) / len(drawn)
        print(f"| {word or '(none)'} | {upright} of {len(drawn)} | {near:.3f} | {far:.3f} | {residual:.2f} |")
    if arguments.figure:
        draw_figure(found, arguments.figure)


if __name__ == "__main__":
    main()

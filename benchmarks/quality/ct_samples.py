"""Training pairs for CT: images of simulated scans of training slices, and the slices themselves.

    python -m benchmarks.quality.ct_samples --slices ct_slices_2d.h5 --out FOLDER --pairs 1600

A pair takes ten times longer to simulate than to learn from. They are therefore made once, in files of a hundred, and
mirrored and turned when drawn, as far as the arc of the views allows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.ct_input import ct_channels, from_attenuation
from benchmarks.quality.pair_files import PAIRS_IN_FILE, pair_arguments, read_pairs, write_pairs
from treg_med.data.ct_simulation import CTSimulation
from treg_med.data.sampling import child_generator
from treg_med.errors import ResourceError
from treg_med.operators import attenuation

__all__ = ["SCENARIOS", "CTSamples", "held_out_subjects"]


@dataclass(frozen=True)
class Scenario:
    """Views and arc of a scan, the photons a ray that the benchmark has and the range that is trained on."""

    views: int
    arc: float
    photons: float
    trained: tuple[float, float]

    def simulation(self, photons: float, seed: int) -> CTSimulation:
        """Return the scan."""
        return CTSimulation(views=self.views, arc=self.arc, photons=photons, seed=seed)


SCENARIOS = {
    "sparse view": Scenario(60, 180.0, 4e3, (2e3, 1e4)),
    "limited angle": Scenario(120, 120.0, 1e4, (4e3, 4e4)),
    "low dose": Scenario(180, 180.0, 1e3, (5e2, 3e3)),
}
# Every so many-th training patient chooses between networks and is not trained on.
_HELD_OUT_EVERY = 9
_LARGEST_SHIFT = 20


@dataclass(frozen=True)
class _Slices:
    """Training slices in HU, their patients and pixel sizes in mm."""

    hounsfield: Tensor
    subjects: list[str]
    spacing: list[float]

    @classmethod
    def load(cls, path: Path) -> _Slices:
        if not path.is_file():
            raise ResourceError(f"expected a slice file, got {str(path)!r}, which is not there; write one with prepare")
        with h5py.File(path) as file:
            rows = np.flatnonzero(file["split"].asstr()[...] == "train")
            images = torch.from_numpy(file["images"][...][rows].astype(np.float32)) / 255 * 2000 - 1000
            spacing = [float(value) if value > 0 else 1.5 for value in file["pixel_spacing_mm"][...][rows]]
            return cls(images, [str(name) for name in file["subject"].asstr()[...][rows]], spacing)

    def rows(self, held_out: bool) -> list[int]:
        chosen = held_out_subjects(self.subjects)
        return [row for row, subject in enumerate(self.subjects) if (subject in chosen) == held_out]


def held_out_subjects(subjects: list[str]) -> set[str]:
    """Return the training patients that choose between networks."""
    return set(sorted(set(subjects))[::_HELD_OUT_EVERY])


def simulate(hu: Tensor, spacing: float, simulation: CTSimulation, index: int) -> Tensor:
    """Return the network's input and target ``(3, H, W)`` of a scan of a slice in HU."""
    shape = (hu.shape[0], hu.shape[1])
    mu = attenuation(hu, simulation.mu_water).clamp_min(0.0)
    scan = simulation.slice(mu, index, simulation.fine_operator(shape, spacing))
    start = ct_channels(simulation.operator(shape, spacing), scan.sinogram.float(), simulation.mu_water)
    return torch.cat([start, from_attenuation(mu, simulation.mu_water)[None]])


class CTSamples:
    """Draws batches of training pairs out of the files of pairs.

    Parameters
    ----------
    slices
        Slice file with captions.
    pairs
        Folder of the pairs.
    batch
        Pairs in a batch.
    seed
        Of everything that is drawn.
    """

    kind = "ct"

    def __init__(self, slices: Path, pairs: Path, batch: int, seed: int) -> None:
        self.groups = read_pairs(pairs, __name__)
        self.slices = _Slices.load(slices)
        self.batch = batch
        self.seed = seed

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs ``(batch, 2, H, W)`` and the targets ``(batch, 1, H, W)`` of a step, in HU / 1000."""
        generator = child_generator(self.seed, "batch", step)
        pairs = torch.stack([self._pair(generator) for _ in range(self.batch)])
        return pairs[:, :2], pairs[:, 2:]

    def _pair(self, generator: torch.Generator) -> Tensor:
        name = list(SCENARIOS)[_below(len(SCENARIOS), generator)]
        pair = self.groups[name][_below(len(self.groups[name]), generator)].float()
        # Half a turn maps every arc on itself, mirrors and quarter turns only one of 180 degrees.
        if _below(2, generator):
            pair = pair.rot90(2, (-2, -1))
        if SCENARIOS[name].arc == 180.0:
            pair = pair.rot90(_below(2, generator), (-2, -1))
            pair = pair.flip(-1) if _below(2, generator) else pair
        shift = [_below(2 * _LARGEST_SHIFT + 1, generator) - _LARGEST_SHIFT for _ in range(2)]
        return torch.roll(pair, shift, (-2, -1))

    def validation(self, count: int = 6) -> Iterator[tuple[str, Tensor, Tensor, float]]:
        """Give name, input, target and half range of scans of the patients kept out, as the benchmark has them."""
        rows = self.slices.rows(held_out=True)
        chosen = [rows[int((k + 0.5) * len(rows) / count)] for k in range(count)]
        for name, scenario in SCENARIOS.items():
            for row in chosen:
                simulation = scenario.simulation(scenario.photons, 0)
                pair = simulate(self.slices.hounsfield[row], self.slices.spacing[row], simulation, row)
                yield name, pair[:2], pair[2:], 0.5


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def make_pairs(slices: _Slices, scenario: Scenario, count: int, generator: torch.Generator) -> Tensor:
    """Simulate pairs ``(count, 3, H, W)`` of slices drawn evenly by patient."""
    rows = slices.rows(held_out=False)
    share = {subject: 1 / math.sqrt(slices.subjects.count(subject)) for subject in set(slices.subjects)}
    weights = torch.tensor([share[slices.subjects[row]] for row in rows])
    pairs = []
    for _ in range(count):
        row = rows[int(torch.multinomial(weights, 1, generator=generator))]
        hu = slices.hounsfield[row].rot90(_below(4, generator), (-2, -1))
        hu = hu.flip(-1) if _below(2, generator) else hu
        low, high = (math.log(value) for value in scenario.trained)
        photons = math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
        zoom = 0.85 + 0.3 * float(torch.rand((), generator=generator))
        seed = _below(2**31, generator)
        pairs.append(simulate(hu, zoom * slices.spacing[row], scenario.simulation(photons, seed), 0))
    return torch.stack(pairs)


def make_files(options: argparse.Namespace) -> None:
    """Write the files that are not there yet."""
    torch.set_num_threads(options.threads)
    slices = _Slices.load(options.slices)
    count = math.ceil(PAIRS_IN_FILE / len(SCENARIOS))

    def make(number: int) -> dict[str, Tensor]:
        generators = {name: child_generator(options.seed, "pairs", number, name) for name in SCENARIOS}
        return {name: make_pairs(slices, SCENARIOS[name], count, each) for name, each in generators.items()}

    write_pairs(options.out, options.pairs, make)


if __name__ == "__main__":
    make_files(pair_arguments(__doc__, pairs=1600))

"""Training pairs for MR that start from total variation, as the methods with a prior do.

    python -m benchmarks.quality.mr_tv_samples --slices brain_mr_slices_2d.h5 --out FOLDER --pairs 800
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality.mr_samples import MRSamples, mr_pair
from benchmarks.quality.pair_files import PAIRS_IN_FILE, pair_arguments, read_pairs, write_pairs
from treg_med import reconstruct
from treg_med.data import Measurement
from treg_med.data.sampling import child_generator

__all__ = ["TVSamples"]

_GROUP = "tv"


class TVSamples:
    """Draws batches of pairs out of the files of pairs, mirrored and shifted.

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

    kind = "mri-tv"

    def __init__(self, slices: Path, pairs: Path, batch: int, seed: int) -> None:
        self.pairs = read_pairs(pairs, __name__)[_GROUP]
        self.scans = MRSamples(slices, (), 1, seed)
        self.batch = batch
        self.seed = seed

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs ``(batch, 2, H, W)`` and the magnitudes ``(batch, 1, H, W)`` of a step, scaled alike."""
        generator = child_generator(self.seed, "batch", step)
        rows = torch.randint(len(self.pairs), (self.batch,), generator=generator)
        pairs = self.pairs[rows].float()
        height, width = pairs.shape[-2:]
        shift = [int(torch.randint(size, (), generator=generator)) for size in (height, width)]
        # Aliases are as far apart wherever the head lies; quarter turns would turn the columns that were measured.
        pairs = torch.roll(pairs, shift, (-2, -1))
        flips = [axis for axis in (-2, -1) if torch.rand((), generator=generator) < 0.5]
        pairs = pairs.flip(flips)
        return pairs[:, :2], pairs[:, 2:]

    def validation(self, count: int = 2) -> Iterator[tuple[str, Tensor, Tensor, float]]:
        """Give name, input, target and scale of the subject kept out, as `MRSamples.validation`."""
        return self.scans.validation(count, _total_variation)


def _total_variation(scan: Measurement) -> Tensor:
    return reconstruct(scan, solver="tv", device="cpu").image


def make_files(options: argparse.Namespace) -> None:
    """Write the files that are not there yet."""
    torch.set_num_threads(options.threads)
    scans = MRSamples(options.slices, (), 1, options.seed)

    def make(number: int) -> dict[str, Tensor]:
        generator = child_generator(options.seed, "pairs", number)
        drawn = (scans.draw_scan(generator) for _ in range(PAIRS_IN_FILE))
        return {_GROUP: torch.stack([mr_pair(scan, _total_variation(scan))[0] for scan in drawn])}

    write_pairs(options.out, options.pairs, make)


if __name__ == "__main__":
    make_files(pair_arguments(__doc__, pairs=800))

"""Training pairs that take longer to make than to learn from: made once, in files of a hundred."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from treg_med.errors import ResourceError

__all__ = ["PAIRS_IN_FILE", "pair_arguments", "read_pairs", "write_pairs"]

PAIRS_IN_FILE = 100


def pair_arguments(description: str | None, pairs: int) -> argparse.Namespace:
    """Return the options of a command that makes pairs; `pairs` is how many it makes by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pairs")
    parser.add_argument("--pairs", type=int, default=pairs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_pairs(folder: Path, pairs: int, make: Callable[[int], Mapping[str, Tensor]]) -> None:
    """Write the files that are not there yet; `make` returns the groups of pairs of a file by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(math.ceil(pairs / PAIRS_IN_FILE)):
        file = folder / f"pairs-{number:03d}.safetensors"
        if file.is_file():
            continue
        temporary = file.with_suffix(".part")
        save_file({name: group.half() for name, group in make(number).items()}, temporary)
        temporary.replace(file)


def read_pairs(folder: Path, maker: str) -> dict[str, Tensor]:
    """Return all groups of pairs ``(n, 3, H, W)``: input of two channels, and target.

    Raises
    ------
    ResourceError
        If there are no files; `maker` is the module that writes them.
    """
    files = sorted(folder.glob("pairs-*.safetensors"))
    if not files:
        raise ResourceError(
            f"expected files of pairs in {str(folder)!r}, got none; make them with python -m {maker}"
        )
    loaded = [load_file(file) for file in files]
    return {name: torch.cat([groups[name] for groups in loaded]) for name in loaded[0]}

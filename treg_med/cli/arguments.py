"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Acceleration",
    "Coils",
    "Device",
    "Input",
    "Json",
    "Mask",
    "Noise",
    "OutFolder",
    "Overwrite",
    "Reader",
    "Seed",
    "Slices",
    "Steps",
    "Threads",
    "TimeLimit",
    "Volume",
]

Input = Annotated[Path, typer.Argument(metavar="INPUT", help="Scan: raw k-space (HDF5, fastMRI) or NIfTI.")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Seed of every random number.")]
Steps = Annotated[int | None, typer.Option(help="Iterations of the solver (treg: diffusion steps).")]
Slices = Annotated[str | None, typer.Option(metavar="A:B", help="Slices, as in Python: '3', '10:20', '::2'.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the best available.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Volume = Annotated[int | None, typer.Option(help="Which volume of a 4D file.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are already there.")]
Reader = Annotated[
    list[str] | None,
    typer.Option("--reader", metavar="NAME=VALUE", help="Option of the reader, e.g. acceleration=8."),
]
Acceleration = Annotated[float, typer.Option(help="Undersampling of simulated k-space.")]
Mask = Annotated[str, typer.Option(help="equispaced, random, gaussian-1d, gaussian-2d, poisson-disc or radial.")]
Coils = Annotated[int, typer.Option(help="Number of simulated receive coils.")]
Noise = Annotated[float, typer.Option(help="Noise of simulated k-space, as a fraction of the image maximum.")]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds after which to stop and save.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]

"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Acceleration",
    "Again",
    "Arc",
    "Batch",
    "Beam",
    "Coils",
    "Device",
    "ElectronicStd",
    "Executor",
    "Input",
    "Inputs",
    "Json",
    "Mask",
    "MuWater",
    "Noise",
    "OutFolder",
    "Overwrite",
    "Photons",
    "Reader",
    "Seed",
    "Shard",
    "Slices",
    "Steps",
    "Threads",
    "TimeLimit",
    "Views",
    "Volume",
    "WorkerThreads",
    "Workers",
]

Input = Annotated[Path, typer.Argument(metavar="INPUT", help="Scan: raw k-space, sinogram (HDF5) or NIfTI.")]
Inputs = Annotated[
    list[Path],
    typer.Argument(metavar="INPUT...", help="Scans: raw k-space, sinograms (HDF5), NIfTI, or folders of them."),
]
Executor = Annotated[
    str, typer.Option(help="Where workers run: local (processes), ray (a cluster; needs the extra 'distributed').")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes; default: one per accelerator, else per CPU core.")
]
WorkerThreads = Annotated[
    int, typer.Option("--threads", min=1, help="CPU threads of a worker; the last bits of a result depend on it.")
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Slices in flight at once in a worker; default: 8, on a CPU 1.")
]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Only share I (from 0) of N, for arrays of jobs without an engine.")
]
Again = Annotated[
    bool,
    typer.Option("--overwrite/--resume", help="Do everything again and replace results, or go on and keep (default)."),
]
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
Acceleration = Annotated[float | None, typer.Option(help="MR: undersampling of k-space; default 4.")]
Mask = Annotated[
    str | None,
    typer.Option(help="MR: equispaced, random (default), gaussian-1d, gaussian-2d, poisson-disc or radial."),
]
Coils = Annotated[int | None, typer.Option(help="MR: number of receive coils; default 1.")]
Noise = Annotated[float | None, typer.Option(help="MR: noise as a fraction of the image maximum; default 0.01.")]
Views = Annotated[int | None, typer.Option(help="CT: number of views; default 60.")]
Arc = Annotated[float | None, typer.Option(help="CT: arc of the views in degrees; default 180 (fan: 360).")]
Photons = Annotated[
    float | None, typer.Option(min=0, help="CT: photons per ray without an object, 0 for no noise; default 1e5.")
]
ElectronicStd = Annotated[float | None, typer.Option(help="CT: readout noise in photons; default 0.")]
Beam = Annotated[str | None, typer.Option(help="CT: parallel (default) or fan.")]
MuWater = Annotated[float | None, typer.Option(help="CT: attenuation of water in 1/mm; default 0.0192.")]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds after which to stop and save.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]

"""The commands of ``treg-med adapt``; each body imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treg_med.cli.arguments import Json, Seed, Threads, TimeLimit

__all__ = ["adapt_app"]

adapt_app = typer.Typer(help="Adapt a prior to other images, and fuse it with what was learned.", no_args_is_help=True)

Base = Annotated[Path | None, typer.Option("--prior", metavar="DIR", help="Prior to adapt; default: the embedded one.")]
Slices8Bit = Annotated[
    Path, typer.Option("--data", metavar="PATH", help="Slice file (HDF5), or a folder of captioned scans.")
]
AdapterOut = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Adapter folder to write.")]
Images = Annotated[
    list[str] | None,
    typer.Option("--images", metavar="NAME", help="Dataset of the images in the slice file; may be repeated."),
]
AdaptMethod = Annotated[str, typer.Option(help="lora: low-rank factors; full: all weights.")]
AdaptSteps = Annotated[int | None, typer.Option(help="Training steps.")]
Batch = Annotated[int | None, typer.Option(help="Samples per step.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate; default: that of the component and method.")]
Rank = Annotated[int | None, typer.Option(help="Rank of the low-rank factors.")]
Crop = Annotated[int | None, typer.Option(help="Side of a training crop in pixels.")]
GoOn = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with an unfinished run, or throw it away.")]


def _adapt(
    component: str,
    prior: Path | None,
    data: Path,
    out: Path,
    images: list[str] | None,
    time_limit: float | None,
    resume: bool,
    threads: int | None,
    as_json: bool,
    **settings: object,
) -> None:
    from treg_med.cli.adapt import Job, run

    job = Job(component, prior, data, out, tuple(images or ("images",)), settings, time_limit, resume, threads)
    run(job, as_json=as_json)


@adapt_app.command("vae")
def adapt_vae(
    data: Slices8Bit,
    out: AdapterOut,
    prior: Base = None,
    method: AdaptMethod = "full",
    images: Images = None,
    steps: AdaptSteps = None,
    batch: Batch = None,
    rate: Rate = None,
    rank: Rank = None,
    seed: Seed = 0,
    crop: Crop = None,
    time_limit: TimeLimit = None,
    resume: GoOn = True,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Adapt the decoder; the latent space, and with it the denoiser, stays as it is."""
    _adapt(
        "vae", prior, data, out, images, time_limit, resume, threads, as_json,
        method=method, steps=steps, batch=batch, rate=rate, rank=rank, seed=seed, crop=crop,
    )  # fmt: skip


@adapt_app.command("unet")
def adapt_unet(
    data: Slices8Bit,
    out: AdapterOut,
    prior: Base = None,
    method: AdaptMethod = "lora",
    images: Images = None,
    steps: AdaptSteps = None,
    batch: Batch = None,
    rate: Rate = None,
    rank: Rank = None,
    seed: Seed = 0,
    crop: Crop = None,
    time_limit: TimeLimit = None,
    resume: GoOn = True,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Adapt the denoiser to the images and their captions; the text encoder stays as it is."""
    _adapt(
        "unet", prior, data, out, images, time_limit, resume, threads, as_json,
        method=method, steps=steps, batch=batch, rate=rate, rank=rank, seed=seed, crop=crop,
    )  # fmt: skip


@adapt_app.command("merge")
def adapt_merge(
    adapter: Annotated[list[Path], typer.Option("--adapter", metavar="DIR", help="Adapter folder; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Prior folder to write.")],
    prior: Base = None,
    as_json: Json = False,
) -> None:
    """Write a prior and its adapters as one complete prior folder."""
    from treg_med.cli.adapt import merge

    merge(prior, adapter, out, as_json=as_json)

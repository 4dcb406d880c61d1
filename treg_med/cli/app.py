"""The commands and their options; each body imports what it needs when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from treg_med import __version__
from treg_med.cli.failures import EXIT_CODES, FailureGroup
from treg_med.notice import RESEARCH_ONLY

__all__ = ["app", "main"]

_CODES = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="treg-med",
    cls=FailureGroup,
    help=(
        "Reconstruct medical images from incomplete measurements with physics and a text-conditioned "
        "diffusion prior."
        f"\n\n{RESEARCH_ONLY}"
    ),
    epilog=f"Exit codes: {_CODES}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
Mask = Annotated[str, typer.Option(help="equispaced, random, gaussian-1d, gaussian-2d or poisson-disc.")]
Coils = Annotated[int, typer.Option(help="Number of simulated receive coils.")]
Noise = Annotated[float, typer.Option(help="Noise of simulated k-space, as a fraction of the image maximum.")]


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"treg-med {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
def demo(
    out: OutFolder = Path("treg_med_output"),
    steps: Steps = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Reconstruct the measured brain scan that comes with the package, with every method, in one figure."""
    from treg_med.cli.demo import run

    run(out, steps=steps, seed=seed, as_json=as_json)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Scan file to look at.")],
    volume: Volume = None,
    reader: Reader = None,
    as_json: Json = False,
) -> None:
    """Say what a file is, whether it can be reconstructed, and with which command."""
    from treg_med.cli.check import run

    run(file, volume, reader or [], as_json=as_json)


@app.command()
def reconstruct(
    input: Input,
    out: OutFolder,
    text: Annotated[str | None, typer.Option(help="What was scanned: 'axial T2-FLAIR brain MRI'.")] = None,
    solver: Annotated[str, typer.Option(help="Method; 'treg-med info' lists them.")] = "treg",
    preset: Annotated[str, typer.Option(help="Named settings of the method.")] = "default",
    prior: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a prior; default: the embedded one.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", metavar="DIR", help="Adapter on the prior; may be repeated.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the method.")
    ] = None,
    reader: Reader = None,
    steps: Steps = None,
    seed: Seed = 0,
    slices: Slices = None,
    volume: Volume = None,
    device: Device = None,
    samples: Annotated[int, typer.Option(help="Posterior samples to average.")] = 1,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Write the comparisons beside a learned result.")
    ] = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Reconstruct a scan into NIfTI, a JSON sidecar and a figure.

    Beside a learned result stand its classical start and its control: the same pipeline, the prior removed.
    """
    from treg_med.cli.reconstruct import Job, run

    job = Job(
        input=input,
        out=out,
        text=text,
        solver=solver,
        preset=preset,
        prior=prior,
        adapters=tuple(adapter or ()),
        settings=tuple(setting or ()),
        reader=tuple(reader or ()),
        steps=steps,
        seed=seed,
        slices=slices,
        volume=volume,
        device=device,
        samples=samples,
        controls=controls,
        overwrite=overwrite,
    )
    run(job, as_json=as_json)


@app.command()
def simulate(
    input: Input,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.h5", help="k-space file to write.")],
    acceleration: Acceleration = 4.0,
    mask: Mask = "random",
    coils: Coils = 1,
    noise: Noise = 0.01,
    seed: Seed = 0,
    slices: Slices = None,
    volume: Volume = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make undersampled k-space from a magnitude volume; the target is stored beside it."""
    from treg_med.cli.simulate import run

    options = {
        "acceleration": acceleration,
        "mask": mask,
        "coils": coils,
        "noise": noise,
        "seed": seed,
        "volume": volume,
        "overwrite": overwrite,
    }
    run(input, out, slices, options, as_json=as_json)


@app.command()
def info(as_json: Json = False) -> None:
    """Print versions, devices, solvers and priors."""
    from treg_med.cli.info import run

    run(as_json)


@app.command("prior-report")
def prior_report(
    prior: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="Folder of a prior; default: the embedded one.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", metavar="DIR", help="Adapter on the prior; may be repeated.")
    ] = None,
    out: OutFolder = Path("treg_med_output"),
    slices: Annotated[
        Path | None, typer.Option("--slices", metavar="FILE.h5", help="Captioned slices; default: phantoms only.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which slices of the file.")] = "val",
    quick: Annotated[bool, typer.Option("--quick", help="Few slices and levels, no samples.")] = False,
    write_card: Annotated[
        bool, typer.Option("--write-card", help="Record what the prior understands in its prior.json.")
    ] = False,
    seed: Seed = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what a prior can do and which words it follows: a model card as HTML and JSON."""
    from treg_med.cli.prior_report import run

    run(
        prior, adapter or [], out, slices, split,
        quick=quick, seed=seed, threads=threads, write_card=write_card, as_json=as_json,
    )  # fmt: skip


train_app = typer.Typer(help="Train a prior on captioned slices.", no_args_is_help=True)
app.add_typer(train_app, name="train")

Config = Annotated[Path, typer.Option("--config", "-c", metavar="FILE.toml", help="Settings of the training.")]
Work = Annotated[Path, typer.Option(metavar="DIR", help="Checkpoints and trained parts.")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data files; default: beside the settings.")
]
Initial = Annotated[
    Path | None, typer.Option("--initial", metavar="DIR", help="Prior to take missing parts and first weights from.")
]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds after which to stop and save.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the last run stopped.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw an unfinished run away.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]


def _train(
    steps: tuple[str, ...],
    config: Path,
    work: Path,
    data: Path | None,
    initial: Path | None,
    threads: int | None,
    as_json: bool,
    *,
    out: Path | None = None,
    time_limit: float | None = None,
    resume: bool = False,
    fresh: bool = False,
    device: str | None = None,
) -> None:
    from treg_med.cli.train import Job, run

    job = Job(steps, config, work, data, initial, out, time_limit, resume, fresh, threads, device)
    run(job, as_json=as_json)


@train_app.command()
def prepare(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of captioned scans, or a slice file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.h5", help="Slice file to write.")],
    size: Annotated[int, typer.Option(help="Side of the slices in pixels.")] = 256,
    plane: Annotated[list[str] | None, typer.Option(help="axial, coronal, sagittal; may be repeated.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th slice.")] = 1,
    window: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="CT window in HU.")] = None,
    val_share: Annotated[float, typer.Option(help="Share of the subjects to validate on.")] = 0.15,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a slice file of NIfTI, HDF5 or BIDS scans and their captions."""
    from treg_med.cli.train_prepare import run

    run(
        source, out, size=size, planes=plane or ["axial"], every=every, window=window,
        val_share=val_share, seed=seed, as_json=as_json,
    )  # fmt: skip


@train_app.command()
def vae(
    config: Config,
    work: Work = Path("checkpoints"),
    data: DataFolder = None,
    time_limit: TimeLimit = None,
    resume: Resume = False,
    fresh: Fresh = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fit the patch basis and train the null-space decoder."""
    _train(("vae",), config, work, data, None, threads, as_json, time_limit=time_limit, resume=resume, fresh=fresh)


@train_app.command()
def text(
    config: Config,
    work: Work = Path("checkpoints"),
    data: DataFolder = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train the tokenizer and pre-train the text encoder."""
    _train(("text",), config, work, data, None, threads, as_json)


@train_app.command()
def unet(
    config: Config,
    work: Work = Path("checkpoints"),
    data: DataFolder = None,
    initial: Initial = None,
    time_limit: TimeLimit = None,
    resume: Resume = False,
    fresh: Fresh = False,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train the denoiser; 'torchrun --nproc-per-node N -m treg_med train unet ...' shares the work."""
    _train(
        ("unet",), config, work, data, initial, threads, as_json,
        time_limit=time_limit, resume=resume, fresh=fresh, device=device,
    )  # fmt: skip


@train_app.command("all")
def train_all(
    config: Config,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Prior folder to write.")],
    work: Work = Path("checkpoints"),
    data: DataFolder = None,
    time_limit: TimeLimit = None,
    resume: Resume = False,
    fresh: Fresh = False,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train every part and export the prior."""
    _train(
        ("vae", "text", "unet", "export"), config, work, data, None, threads, as_json,
        out=out, time_limit=time_limit, resume=resume, fresh=fresh, device=device,
    )  # fmt: skip


@train_app.command()
def export(
    config: Config,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Prior folder to write.")],
    work: Work = Path("checkpoints"),
    data: DataFolder = None,
    initial: Initial = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Assemble the trained parts, also of a run that goes on, into a prior folder with its card."""
    _train(("export",), config, work, data, initial, threads, as_json, out=out)


adapt_app = typer.Typer(help="Adapt a prior to other images, and fuse it with what was learned.", no_args_is_help=True)
app.add_typer(adapt_app, name="adapt")

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


def main() -> None:
    """Run the command line."""
    # Read when torch is loaded: its idle threads otherwise spin, many times slower where the machine is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()

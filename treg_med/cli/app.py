"""The commands and their options; each body imports what it needs when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from treg_med import __version__
from treg_med.cli.adapt_commands import adapt_app
from treg_med.cli.arguments import (
    Acceleration,
    Again,
    Arc,
    Batch,
    Beam,
    Coils,
    Device,
    ElectronicStd,
    Executor,
    Input,
    Inputs,
    Json,
    Mask,
    MuWater,
    Noise,
    OutFolder,
    Overwrite,
    Photons,
    Reader,
    Seed,
    Shard,
    Slices,
    Steps,
    Views,
    Volume,
    Workers,
    WorkerThreads,
)
from treg_med.cli.failures import EXIT_CODES, FailureGroup
from treg_med.cli.train_commands import train_app
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
app.add_typer(train_app, name="train")
app.add_typer(adapt_app, name="adapt")


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
    inputs: Inputs,
    out: OutFolder,
    text: Annotated[str | None, typer.Option(help="What was scanned: 'axial T2-FLAIR brain MRI'.")] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="Method; 'treg-med info' lists them. Default: treg, and pwls-tv for what is no body."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Named settings of the method. Default: ct for CT where it has them.")
    ] = None,
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
    overwrite: Again = False,
    executor: Executor = "local",
    workers: Workers = None,
    threads: WorkerThreads = 1,
    batch: Batch = None,
    shard: Shard = None,
    page: Annotated[bool, typer.Option("--report/--no-report", help="Make a picture and an HTML page.")] = True,
    as_json: Json = False,
) -> None:
    """Reconstruct scans into a tree of NIfTI volumes, JSON sidecars, pictures and HTML pages.

    Beside a learned result stand its classical start and its control: the same pipeline, the prior removed.

    Given again after it was stopped, the command goes on. What cannot be reconstructed is set aside.
    """
    from treg_med.cli.reconstruct import Job, run

    job = Job(
        inputs=tuple(inputs),
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
        executor=executor,
        workers=workers,
        threads=threads,
        batch=batch,
        shard=shard,
        page=page,
    )
    run(job, as_json=as_json)


@app.command()
def evaluate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="Datasets, scenarios, methods and prompts to compare.")
    ],
    out: OutFolder,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Reconstruct nothing: score what is there, under other protocols too.")
    ] = False,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="Metrics in place of the configuration's; may be repeated.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", metavar="'ssim>=0.85'", help="Exit with code 8 if it is not met; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
    overwrite: Again = False,
    executor: Executor = "local",
    workers: Workers = None,
    threads: WorkerThreads = 1,
    batch: Batch = None,
    device: Device = None,
    shard: Shard = None,
    as_json: Json = False,
) -> None:
    """Compare methods and prompts over scans: metrics by named protocols, statistics by patient, tables and a report.

    Given again after it was stopped, the command goes on. What has no score is listed, and the exit code is then 3.
    """
    from treg_med.cli.evaluate import Job, run

    job = Job(
        config=config,
        out=out,
        rescore=rescore,
        protocols=tuple(protocol or ()),
        require=tuple(require or ()),
        dry_run=dry_run,
        executor=executor,
        workers=workers,
        device=device,
        threads=threads,
        batch=batch,
        shard=shard,
        overwrite=overwrite,
    )
    run(job, as_json=as_json)


@app.command()
def simulate(
    input: Input,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.h5", help="Scan to write.")],
    acceleration: Acceleration = None,
    mask: Mask = None,
    coils: Coils = None,
    noise: Noise = None,
    views: Views = None,
    arc: Arc = None,
    photons: Photons = None,
    electronic_std: ElectronicStd = None,
    beam: Beam = None,
    mu_water: MuWater = None,
    seed: Seed = 0,
    slices: Slices = None,
    volume: Volume = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make an incomplete scan of a volume: k-space of a magnitude, projections of CT; the target is stored too."""
    from treg_med.cli.simulate import run

    common = {"seed": seed, "volume": volume, "overwrite": overwrite}
    mr = {"acceleration": acceleration, "mask": mask, "coils": coils, "noise": noise}
    ct = {
        "views": views,
        "arc": arc,
        "photons": photons,
        "electronic_std": electronic_std,
        "beam": beam,
        "mu_water": mu_water,
    }
    run(input, out, slices, common, mr, ct, as_json=as_json)


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


def main() -> None:
    """Run the command line."""
    # Read when torch is loaded: its idle threads otherwise spin, many times slower where the machine is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()

"""The commands of ``treg-med train``; each body imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treg_med.cli.arguments import Device, Json, Seed, Threads, TimeLimit

__all__ = ["train_app"]

train_app = typer.Typer(help="Train a prior on captioned slices.", no_args_is_help=True)

Config = Annotated[Path, typer.Option("--config", "-c", metavar="FILE.toml", help="Settings of the training.")]
Work = Annotated[Path, typer.Option(metavar="DIR", help="Checkpoints and trained parts.")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data files; default: beside the settings.")
]
Initial = Annotated[
    Path | None, typer.Option("--initial", metavar="DIR", help="Prior to take missing parts and first weights from.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the last run stopped.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw an unfinished run away.")]


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


def _add_short(step: str, purpose: str) -> None:
    """Add the command of a step that takes minutes and reads the parts trained before it."""

    @train_app.command(step, help=purpose)
    def command(
        config: Config,
        work: Work = Path("checkpoints"),
        data: DataFolder = None,
        initial: Initial = None,
        threads: Threads = None,
        as_json: Json = False,
    ) -> None:
        _train((step,), config, work, data, initial, threads, as_json)


_add_short("words", "Train the map of what words alone say: the expected slice and the place of a lesion.")
_add_short("scorer", "Train the scorer, which says how well a sentence fits a picture.")


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
        ("vae", "text", "words", "scorer", "unet", "export"), config, work, data, None, threads, as_json,
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

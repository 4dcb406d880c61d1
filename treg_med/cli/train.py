"""``treg-med train``: a prior from captioned slices, step by step."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from treg_med.cli.console import print_json, training_bar
from treg_med.cli.options import make_folder
from treg_med.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import torch

    from treg_med.training.pipeline import Training

__all__ = ["STEPS", "Job", "run"]

_UNFINISHED = "unfinished"

#: Step -> the checkpoint that it leaves while it is unfinished, where it has one.
STEPS = {"vae": "autoencoder.ckpt", "text": None, "words": None, "scorer": None, "unet": "denoiser.ckpt"}

#: Steps whose training leaves no checkpoint, their parts and methods: it is done, or it starts again.
_SHORT = {
    "text": (("tokenizer", "text_encoder"), "train_text"),
    "words": (("word_map",), "train_word_map"),
    "scorer": (("scorer",), "train_scorer"),
}


@dataclass(frozen=True)
class Job:
    """The options of the command."""

    steps: tuple[str, ...]
    config: Path
    work: Path
    data: Path | None
    initial: Path | None
    out: Path | None
    time_limit: float | None
    resume: bool
    fresh: bool
    threads: int | None
    device: str | None


def run(job: Job, *, as_json: bool) -> None:
    """Train the steps, or export, and print what came of it."""
    import torch

    from treg_med.data.whole_folder import check_replaceable
    from treg_med.priors.card import PRIOR_CARD
    from treg_med.training.config import read_config
    from treg_med.training.pipeline import Training

    config = read_config(job.config)
    if job.time_limit is not None and job.time_limit <= 0:
        raise ConfigError(f"expected --time-limit of more than 0 seconds, got {job.time_limit}")
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    make_folder(job.work)
    if job.out is not None:
        check_replaceable(job.out, PRIOR_CARD)
    for step in job.steps:
        _check_checkpoint(job, step)
    with training_bar() as (say, progress):
        data, device = job.data or job.config.parent, _device(job.device)
        training = Training(config, data, job.work, job.initial, device, say=say, progress=progress)
        results = _train_steps(training, job)
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes speaks
    if as_json:
        print_json(results)
        return
    for step, numbers in results.items():
        # Tables of tables are for the card and --json.
        shown = {name: value for name, value in numbers.items() if not _is_nested(value)}
        typer.echo(f"{step}: " + ", ".join(f"{name} {_short(value)}" for name, value in shown.items()))


def _device(name: str | None) -> torch.device:
    """Device by name, or the best available."""
    import torch

    from treg_med.reconstruction import best_device

    try:
        return torch.device(name) if name else best_device()
    except RuntimeError as error:
        raise ResourceError(f"expected a device such as cpu or cuda:0, got {name!r}") from error


def _train_steps(training: Training, job: Job) -> dict[str, dict[str, Any]]:
    """Train one step after the other until the time is over; a step that is unfinished ends the call."""
    deadline = time.monotonic() + (job.time_limit or float("inf"))
    results: dict[str, dict[str, Any]] = {}
    for step in job.steps:
        left = max(deadline - time.monotonic(), 0.0)
        results[step] = _train(dataclasses.replace(training, seconds=left), step, job)
        if _UNFINISHED in results[step]:
            break
    return results


def _train(training: Training, step: str, job: Job) -> dict[str, Any]:
    if step == "vae":
        return training.train_autoencoder() or {_UNFINISHED: "go on with --resume"}
    if step in _SHORT:
        parts, train = _SHORT[step]
        done = job.resume and all((job.work / part).is_dir() for part in parts)
        return {"kept": str(job.work)} if done else getattr(training, train)()
    if step == "unet":
        numbers = training.train_denoiser()
        unfinished = numbers["samples"] < training.config.denoiser.samples
        shown = {name: numbers[name] for name in ("samples", "seconds")}
        return shown | ({_UNFINISHED: "go on with --resume"} if unfinished else {})
    if job.out is None:
        raise ConfigError("expected --out DIR, the prior folder to write, got none")
    return {"prior": str(job.out), **training.export(job.out)["metrics"]}


def _check_checkpoint(job: Job, step: str) -> None:
    """Neither go on with a run by accident nor throw one away."""
    name = STEPS.get(step)
    checkpoint = job.work / name if name else None
    if checkpoint is None or not checkpoint.exists() or job.resume:
        return
    if not job.fresh:
        raise ConfigError(
            f"expected no unfinished {step} training in {str(job.work)!r}, got {name}; "
            "go on with --resume, or start again with --fresh"
        )
    checkpoint.unlink()


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

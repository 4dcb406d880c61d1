"""``treg-med adapt``: a prior fitted to other images, and fused with what was learned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from treg_med.cli.console import print_json, print_warnings, stdout, training_bar
from treg_med.errors import ConfigError
from treg_med.notice import RESEARCH_ONLY

__all__ = ["Job", "merge", "run"]


@dataclass(frozen=True)
class Job:
    """The options of the command."""

    component: str
    prior: Path | None
    data: Path
    out: Path
    images: tuple[str, ...]
    settings: dict[str, Any]
    time_limit: float | None
    resume: bool
    threads: int | None


def run(job: Job, *, as_json: bool) -> None:
    """Adapt, write and print the errors before and after."""
    import torch

    from treg_med.reconstruction import best_device
    from treg_med.training.adaptation import AdaptationSettings, adapt_prior

    if job.time_limit is not None and job.time_limit <= 0:
        raise ConfigError(f"expected --time-limit of more than 0 seconds, got {job.time_limit}")
    settings = AdaptationSettings(**{name: value for name, value in job.settings.items() if value is not None})
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    with training_bar() as (say, progress):
        card = adapt_prior(
            job.prior,
            job.data,
            job.out,
            job.component,
            settings,
            images=job.images,
            seconds=job.time_limit or float("inf"),
            resume=job.resume,
            device=best_device(),
            say=say,
            progress=progress,
        )
    if as_json:
        print_json({"adapter": job.out, "finished": card is not None, "card": card, "notice": RESEARCH_ONLY})
        return
    if card is None:
        typer.echo("unfinished: the same command goes on")
        return
    console = stdout()
    console.print(_table(card))
    console.print(f"{job.out}: use it with --adapter, or fuse it with 'treg-med adapt merge'", markup=False)
    console.print(RESEARCH_ONLY)
    print_warnings(_warnings(card))


def _warnings(card: dict[str, Any]) -> list[str]:
    """Say so where the adapted prior is no better at what was trained."""
    before, after = card["before"], card["after"]
    if card["component"] == "vae":
        better = after["round_trip_psnr_db"]["mean"] > before["round_trip_psnr_db"]["mean"]
    else:
        better = sum(after["denoising_error_std"].values()) < sum(before["denoising_error_std"].values())
    return [] if better else ["the adapted prior is no better than its base; try more --steps or a smaller --rate"]


def _table(card: dict[str, Any]) -> Table:
    on = card["measured_on"]
    table = Table(title=f"{card['component']}, {card['method']}: {on['slices']} {on['split']} slices")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    before, after = card["before"], card["after"]
    for name in ("mean", "worst"):
        values = (f"{part['round_trip_psnr_db'][name]:.2f}" for part in (before, after))
        table.add_row(f"round trip, {name} (dB)", *values)
    for t in before["denoising_error_std"]:
        values = (f"{part['denoising_error_std'][t]:.4f}" for part in (before, after))
        table.add_row(f"denoising rms at t={t}", *values)
    return table


def merge(prior: Path | None, adapters: Sequence[Path], out: Path, *, as_json: bool) -> None:
    """Fuse, write and report."""
    from treg_med.priors.merge import merge_adapters

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        card = merge_adapters(prior, adapters, out)
    if as_json:
        print_json({"prior": out, "card": card, "notice": RESEARCH_ONLY})
    else:
        stdout().print(f"{out}: {len(card['sha256'])} files, open it with --prior", markup=False)
        stdout().print(RESEARCH_ONLY)
    print_warnings([str(w.message) for w in caught if w.category is UserWarning])

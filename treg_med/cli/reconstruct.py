"""``treg-med reconstruct``: a scan file to NIfTI, sidecar and figure."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from treg_med.cli.console import method_table, print_json, print_warnings, progress_bar, stdout
from treg_med.cli.options import make_folder, parse_pairs, parse_settings, parse_slices, reader_options
from treg_med.errors import ConfigError
from treg_med.notice import RESEARCH_ONLY

if TYPE_CHECKING:
    from treg_med.priors import LatentPrior
    from treg_med.volume import VolumeRun

__all__ = ["Job", "report", "run"]


@dataclass(frozen=True)
class Job:
    """The options of the command."""

    input: Path
    out: Path
    text: str | None
    solver: str | None
    preset: str | None
    prior: Path | None
    adapters: tuple[Path, ...]
    settings: tuple[str, ...]
    reader: tuple[str, ...]
    steps: int | None
    seed: int
    slices: str | None
    volume: int | None
    device: str | None
    samples: int
    controls: bool
    overwrite: bool


def run(job: Job, *, as_json: bool) -> None:
    """Reconstruct, write and report."""
    from treg_med.data import open_scan
    from treg_med.data.prompts import check_text
    from treg_med.solvers import available_presets, get_solver
    from treg_med.volume import Method, output_stem, reconstruct_volume, with_controls

    if job.samples < 1:
        raise ConfigError(f"expected --samples of at least 1, got {job.samples}")
    check_text(job.text)  # a text that cannot be used fails here, before any work: its warnings come with the result
    if job.solver is not None:
        first = job.preset or "default"
        get_solver(job.solver, first, **parse_settings(job.solver, job.settings, job.steps, first))
    with open_scan(job.input, **reader_options(job.volume, parse_pairs("--reader", job.reader))) as scan:
        indices = parse_slices(job.slices, len(scan))
        text = _text(job.text, scan.header.text)
        solver = _solver(job.solver, medical=scan.header.medical)
        tomography = scan.header.views is not None
        preset = job.preset or ("ct" if tomography and "ct" in available_presets(solver) else "default")
        settings = parse_settings(solver, job.settings, job.steps, preset)
        get_solver(solver, preset, **settings)
        method = Method(solver, solver, preset, settings, text, job.samples)
        start = "pwls-tv" if tomography else "tv"
        methods = with_controls(method, start) if job.controls else (method,)
        needed = any(m.needs_prior for m in methods)
        prior, notes = load_prior(job.prior, job.adapters) if needed else (None, [])
        if prior is not None:
            prior.embed(text or "")  # a text that the prior cannot read fails here, before any work
        folder = make_folder(job.out)
        with progress_bar() as watch:
            finished = reconstruct_volume(
                scan,
                methods,
                folder,
                output_stem(job.input),
                indices=indices,
                prior=prior,
                seed=job.seed,
                device=job.device,
                overwrite=job.overwrite,
                watch=watch,
            )
    report(finished, f"{job.input.name}: {len(indices)} of {scan.header.n_slices} slices", as_json=as_json)
    print_warnings([*notes, *finished.warnings])


def load_prior(folder: Path | None, adapters: Sequence[Path] = ()) -> tuple[LatentPrior, list[str]]:
    """Open the prior of ``folder``, or the embedded one, with adapters on top; also what to be warned of."""
    from treg_med.priors import LatentPrior

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        prior = LatentPrior.from_pretrained(folder, adapter=adapters)
    return prior, [str(w.message) for w in caught if w.category is UserWarning]


def _solver(given: str | None, *, medical: bool) -> str:
    """Return the user's method, else TReg, or the best one without a prior where no prior of bodies applies."""
    if given is not None or medical:
        return given or "treg"
    typer.echo("no medical prior applies to this scan: solver pwls-tv (change it with --solver)", err=True)
    return "pwls-tv"


def _text(given: str | None, suggested: str | None) -> str | None:
    """Return the user's text, else the one made of whitelisted words of the header, and say so."""
    if given is not None or suggested is None:
        return given
    typer.echo(f"text from the scan's header: {suggested!r} (change it with --text)", err=True)
    return suggested


def report(finished: VolumeRun, title: str, *, as_json: bool) -> None:
    """Print what was written, as tables or as JSON."""
    if as_json:
        print_json(_as_dict(finished))
        return
    console = stdout()
    console.print(method_table(title, finished.results))
    for result in finished.results:
        console.print(f"{result.image_path}  (+ .json)", markup=False)
    console.print(str(finished.figure_path), markup=False)
    console.print(RESEARCH_ONLY)


def _as_dict(finished: VolumeRun) -> dict[str, Any]:
    results = [dataclasses.asdict(result) | {"residual": result.residual} for result in finished.results]
    return {
        "notice": RESEARCH_ONLY,
        "results": results,
        "figure": finished.figure_path,
        "warnings": finished.warnings,
    }

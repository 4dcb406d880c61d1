"""A whole scan in one call: every slice by every method, volumes with sidecars, a picture and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treg_med.errors import ConfigError
from treg_med.reconstruction import best_device
from treg_med.runs.driver import drive
from treg_med.runs.in_process import InProcessExecutor
from treg_med.runs.machine import task_slices
from treg_med.runs.method import Method, with_controls
from treg_med.runs.plan import VolumeJob, VolumeOutcome
from treg_med.runs.prior_source import PriorSource
from treg_med.runs.tasks import Slot, failure_error
from treg_med.runs.volume_worker import WorkerSettings

if TYPE_CHECKING:
    from treg_med.data.source import SliceSource
    from treg_med.priors import LatentPrior
    from treg_med.solvers.problem import Callback

__all__ = ["Method", "VolumeOutcome", "reconstruct_volume", "with_controls"]


def reconstruct_volume(
    source: SliceSource,
    methods: str | Method | Sequence[Method],
    out: str | Path,
    *,
    text: str | None = None,
    slices: str | None = None,
    name: str | None = None,
    prior: LatentPrior | None = None,
    seed: int = 0,
    device: str | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    report: bool = True,
    follow: Callable[[str], Callback] | None = None,
) -> VolumeOutcome:
    """Reconstruct the slices of an open scan with every method, in this process.

    Finished slices are kept at once: the same call goes on where an interrupted one ended, and does nothing where all
    is done. Outputs are named in the manner of BIDS derivatives, ``sub-X/anat/sub-X_rec-treg_T2w.nii.gz``, with a
    sidecar each, one picture and one HTML page.

    Parameters
    ----------
    source
        Open scan.
    methods
        What to run, the main result last; the name of a solver stands for it with its comparisons before it.
    out
        Root of the output tree.
    text
        Prompt, where ``methods`` is a name; None is the empty prompt.
    slices
        ``"3"``, ``"10:20"``, ``"::2"``; None is all.
    name
        Name of the outputs in place of the input's, such as ``sub-01_ses-2``.
    prior
        For methods that need one; None is the embedded one.
    seed
        Seed of the run; every slice has one of its own made of it.
    device
        Where to compute; None is the best available.
    batch
        Slices in flight at once on an accelerator; None is 8.
    overwrite
        Do again what is there, and replace outputs of other work.
    report
        Also make the picture and the page.
    follow
        Called with a description before each slice; returns the callback of its solver.

    Returns
    -------
    VolumeOutcome
        Sidecars by label, the page and the picture.

    Raises
    ------
    TregMedError
        If the data, the settings or the folder cannot be used; finished slices stay.

    Examples
    --------
    >>> import tempfile, treg_med as tm
    >>> with tempfile.TemporaryDirectory() as folder, tm.open_scan(tm.sample_path("brain_8ch_poisson")) as scan:
    ...     done = tm.reconstruct_volume(scan, "zero-filled", folder)
    >>> done.status, list(done.outputs)
    ('done', ['zero-filled'])
    """
    if isinstance(methods, str):
        start = "pwls-tv" if source.header.views is not None else "tv"
        methods = with_controls(Method(methods, methods, text=text), start)
    elif text is not None:
        raise ConfigError("expected the text within the methods, as methods were given; use Method(..., text=...)")
    chosen = (methods,) if isinstance(methods, Method) else tuple(methods)
    path = Path(getattr(source, "path", name or "scan"))
    options: dict[str, Any] = getattr(source, "options", {})
    job = VolumeJob(path, chosen, Path(out), options, slices, seed, name, report)
    settings = WorkerSettings(PriorSource(loaded=prior), batch, follow, source)
    slot = Slot(0, str(best_device() if device is None else device), torch.get_num_threads())
    with InProcessExecutor(settings, slot) as executor:
        (outcome,) = drive([job], executor, chunk=task_slices(slot.device, batch), overwrite=overwrite)
    if outcome.failure is not None:
        raise failure_error(outcome.failure)
    return outcome

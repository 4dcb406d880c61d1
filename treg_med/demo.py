"""The demo: a measured scan that comes with the package, reconstructed with and without the prior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from treg_med.data import open_scan, sample_path
from treg_med.volume import Method, VolumeOutcome, reconstruct_volume, with_controls

if TYPE_CHECKING:
    from treg_med.solvers.problem import Callback

__all__ = ["DEMO_SAMPLE", "DEMO_TEXT", "demo_methods", "run_demo"]

DEMO_SAMPLE = "brain_8ch_poisson"
DEMO_TEXT = "axial T1-weighted brain MRI"


def demo_methods(steps: int | None = None, text: str | None = DEMO_TEXT) -> tuple[Method, ...]:
    """Return the methods of the demo, from the least to the most assumptions.

    Parameters
    ----------
    steps
        Diffusion steps of TReg; None is its default.
    text
        Prompt of TReg.
    """
    settings = {} if steps is None else {"steps": steps}
    classical = (
        Method("zero-filled", "zero-filled"),
        Method("cg-sense", "cg-sense"),
        Method("wavelet", "wavelet"),
    )
    return (*classical, *with_controls(Method("treg", "treg", settings=settings, text=text)))


def run_demo(
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    text: str | None = DEMO_TEXT,
    device: str | None = None,
    follow: Callable[[str], Callback] | None = None,
) -> VolumeOutcome:
    """Reconstruct the sample scan with every method; results of an earlier demo in ``folder`` are replaced.

    Parameters
    ----------
    folder
        Root of the output tree.
    steps, text
        Diffusion steps and prompt of TReg.
    seed
        Seed of the run.
    device
        Where to compute; None is the best available.
    follow
        As in `treg_med.volume.reconstruct_volume`.
    """
    with open_scan(sample_path(DEMO_SAMPLE)) as scan:
        return reconstruct_volume(
            scan,
            demo_methods(steps, text),
            folder,
            name="demo",
            slices="0",
            seed=seed,
            device=device,
            overwrite=True,
            follow=follow,
        )

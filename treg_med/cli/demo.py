"""``treg-med demo``."""

from __future__ import annotations

from pathlib import Path

from treg_med.cli.console import print_warnings, run_bar
from treg_med.cli.options import make_folder
from treg_med.cli.reconstruct import report

__all__ = ["run"]


def run(out: Path, *, steps: int | None, seed: int, as_json: bool) -> None:
    """Run the demo and print its table."""
    from treg_med.demo import DEMO_TEXT, run_demo

    folder = make_folder(out)
    with run_bar(1) as (_, follow):
        finished = run_demo(folder, steps=steps, seed=seed, follow=follow)
    report([finished], as_json=as_json, title=f"measured 8-coil brain scan; treg was told: {DEMO_TEXT}")
    print_warnings(finished.warnings)

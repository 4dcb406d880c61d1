"""``treg-med simulate``: a magnitude volume to an undersampled k-space file with its target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treg_med.cli.console import print_json, print_warnings, stdout
from treg_med.cli.options import parse_slices
from treg_med.notice import RESEARCH_ONLY

__all__ = ["run"]


def run(source: Path, out: Path, slices: str | None, options: Mapping[str, Any], *, as_json: bool) -> None:
    """Simulate, write and report.

    Parameters
    ----------
    source, out
        NIfTI file to read, HDF5 file to write.
    slices
        As on the command line.
    options
        Keywords of `treg_med.data.simulate_scan`.
    as_json
        Print JSON.
    """
    from treg_med.data import open_scan, simulate_scan

    chosen = None
    if slices is not None:
        with open_scan(source, volume=options.get("volume")) as scan:
            chosen = parse_slices(slices, len(scan))
    written = simulate_scan(source, out, slices=chosen, **options)
    with open_scan(written) as scan:
        header = scan.header
    if as_json:
        print_json({"file": written, **header.as_dict(), "notice": RESEARCH_ONLY})
        return
    console = stdout()
    console.print(
        f"{written}: {header.n_slices} slices of {header.image_shape[0]} x {header.image_shape[1]}, "
        f"{header.coils} coil(s), acceleration {header.acceleration:.2f}, noise {header.noise_std:.4g}",
        markup=False,
    )
    console.print(RESEARCH_ONLY)
    print_warnings(header.warnings)

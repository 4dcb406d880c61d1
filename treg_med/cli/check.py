"""``treg-med check``: what a file is, whether one slice of it can be read, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from treg_med.cli.console import print_json, print_warnings, stdout
from treg_med.cli.options import parse_pairs, reader_options
from treg_med.environment import torchvision_warning
from treg_med.notice import RESEARCH_ONLY

if TYPE_CHECKING:
    from treg_med.data import Measurement
    from treg_med.data.source import ScanHeader

__all__ = ["run"]


def run(file: Path, volume: int | None, reader: Sequence[str], *, as_json: bool) -> None:
    """Open the file, read its first slice and report."""
    from treg_med.data import open_scan

    with open_scan(file, **reader_options(volume, parse_pairs("--reader", reader))) as scan:
        header = scan.header
        measurement = scan[len(scan) // 2]
    facts: dict[str, Any] = header.as_dict()
    facts["acceleration"] = measurement.operator.facts().get("acceleration", header.acceleration)
    facts["noise_std"] = measurement.noise_std
    if header.views is not None:
        facts["missing"] = measurement.provenance.get("missing")
        facts["mu_water_per_mm"] = measurement.mu_water
    facts["next"] = _next_command(file, header)
    broken = torchvision_warning()
    facts["warnings"] = [*dict.fromkeys([*measurement.warnings, *([broken] if broken else [])])]
    if as_json:
        print_json(facts | {"notice": RESEARCH_ONLY})
        return
    table = Table(title=file.name, show_header=False)
    table.add_row("format", header.format)
    table.add_row("slices", f"{header.n_slices} of {header.image_shape[0]} x {header.image_shape[1]}")
    table.add_row("voxel (mm)", " x ".join(f"{length:.3g}" for length in header.spacing_mm))
    table.add_row("position", "known" if header.geometry_known else "unknown")
    for name, value in _sampling(header, measurement, facts["acceleration"]):
        table.add_row(name, value)
    noise = "unknown" if measurement.noise_std is None else f"{measurement.noise_std:.4g}"
    table.add_row("noise per sample", f"{noise} ({measurement.provenance.get('noise_std', 'given')})")
    table.add_row("origin", "simulated" if header.simulated else "measured")
    table.add_row("suggested text", header.text or "none")
    console = stdout()
    console.print(table)
    console.print(f"next: {facts['next']}", markup=False)
    console.print(RESEARCH_ONLY)
    print_warnings(facts["warnings"])


def _sampling(header: ScanHeader, measurement: Measurement, acceleration: float | None) -> list[tuple[str, str]]:
    """Return what was measured: coils and undersampling of MR, beam and views of CT."""
    if header.views is None:
        factor = "unknown" if acceleration is None else f"{acceleration:.2f}"
        return [("coils", str(header.coils)), ("acceleration", factor)]
    arc = "" if header.arc_deg is None else f" over {header.arc_deg:.5g} degrees"
    rows = [("beam", header.beam or "unknown"), ("views", f"{header.views}{arc}")]
    missing = measurement.provenance.get("missing")
    if missing:
        rows.append(("not measured", str(missing)))
    water = measurement.mu_water
    return [*rows, ("image in", "1/mm" if water is None else f"HU (water at {water:.4g} / mm)")]


def _next_command(file: Path, header: ScanHeader) -> str:
    command = ["treg-med", "reconstruct", str(file), "--out", "treg_med_output"]
    if not header.medical:
        return shlex.join([*command, "--solver", "pwls-tv"])
    return shlex.join([*command, "--text", header.text] if header.text else command)

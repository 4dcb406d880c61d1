"""``treg-med simulate``: a volume to an incomplete scan with its target: MR to k-space, CT in HU to projections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treg_med.cli.console import print_json, print_warnings, stdout
from treg_med.errors import ConfigError, FormatError
from treg_med.notice import RESEARCH_ONLY
from treg_med.runs.slice_range import parse_slices

__all__ = ["run"]


def run(
    source: Path,
    out: Path,
    slices: str | None,
    common: Mapping[str, Any],
    mr: Mapping[str, Any],
    ct: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Simulate, write and report.

    Parameters
    ----------
    source, out
        Volume to read, HDF5 file to write.
    slices
        As on the command line.
    common, mr, ct
        Keywords of `treg_med.data.simulate_scan` and `simulate_ct_scan`, of both and of one of them; None where not
        given.
    as_json
        Print JSON.

    Raises
    ------
    ConfigError
        For an option of the other kind of scan.
    FormatError
        If the file holds no images.
    """
    from treg_med.data import is_hounsfield_volume, open_scan, simulate_ct_scan, simulate_scan
    from treg_med.data.scan_formats import FileContent

    volume = common.get("volume")
    tomography = is_hounsfield_volume(source, volume)
    if not tomography and FileContent.of(source).keys is not None:
        raise FormatError(
            f"expected images to simulate a scan of (NIfTI, or HDF5 with 'hounsfield' for CT), got {source.name!r}, "
            "HDF5 without; if it is a measurement, reconstruct it as it is, with fewer views by --reader views=30"
        )
    own, other = (ct, mr) if tomography else (mr, ct)
    foreign = [f"--{name.replace('_', '-')}" for name, value in other.items() if value is not None]
    if foreign:
        kind = "CT volume (Hounsfield units)" if tomography else "magnitude volume, from which k-space is simulated"
        raise ConfigError(f"{source.name!r} is a {kind}; leave out {', '.join(foreign)}")
    options = dict(common) | {name: value for name, value in own.items() if value is not None}
    if options.get("photons") == 0:
        options["photons"] = None
    chosen = None
    if slices is not None:
        with open_scan(source, **({} if volume is None else {"volume": volume})) as scan:
            chosen = parse_slices(slices, len(scan))
    written = (simulate_ct_scan if tomography else simulate_scan)(source, out, slices=chosen, **options)
    with open_scan(written) as scan:
        header = scan.header
    if as_json:
        print_json({"file": written, **header.as_dict(), "notice": RESEARCH_ONLY})
        return
    console = stdout()
    if tomography:
        sampling = f"{header.beam} beam, {header.views} views over {header.arc_deg:.5g} degrees"
    else:
        sampling = f"{header.coils} coil(s), acceleration {header.acceleration:.2f}, noise {header.noise_std:.4g}"
    size = f"{header.n_slices} slices of {header.image_shape[0]} x {header.image_shape[1]}"
    console.print(f"{written}: {size}, {sampling}", markup=False)
    console.print(RESEARCH_ONLY)
    print_warnings(header.warnings)

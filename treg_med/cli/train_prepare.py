"""``treg-med train prepare``: a folder of captioned scans to the slice file that training reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from treg_med.cli.console import print_json, stdout
from treg_med.cli.options import make_folder
from treg_med.errors import ConfigError

__all__ = ["parse_window", "run"]


def run(
    source: Path,
    out: Path,
    *,
    size: int = 256,
    planes: Sequence[str] = ("axial",),
    every: int = 1,
    window: str | None = None,
    val_share: float = 0.15,
    seed: int = 0,
    as_json: bool = False,
) -> None:
    """Prepare and report; progress and warnings go to stderr.

    Parameters
    ----------
    source, out
        Folder (or slice file) to read, slice file to write.
    size, planes, every, val_share, seed
        As in `treg_med.training.prepare.prepare_slices`.
    window
        ``"LOW,HIGH"`` in HU.
    as_json
        Print JSON.
    """
    from treg_med.training.prepare import prepare_slices

    limits = parse_window(window)
    written = prepare_slices(
        source,
        make_folder(out.parent) / out.name,
        size=size,
        planes=tuple(planes),
        every=every,
        val_share=val_share,
        seed=seed,
        window=limits,
        log=lambda line: typer.echo(line, err=True),
    )
    counts = _counts(written)
    if as_json:
        print_json({"file": written, **counts})
    else:
        stdout().print(f"{written}: {counts['train']} train and {counts['val']} val slices", markup=False)


def parse_window(text: str | None) -> tuple[float, float] | None:
    """Return the limits of ``"LOW,HIGH"``.

    Raises
    ------
    ConfigError
        If the text is not of that form.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"expected --window LOW,HIGH in HU, for example -160,240, got {text!r}") from None
    return low, high


def _counts(path: Path) -> dict[str, int]:
    import h5py

    with h5py.File(path) as file:
        split = list(file["split"].asstr()[...])
    return {name: split.count(name) for name in ("train", "val")}

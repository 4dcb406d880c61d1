"""Which scans a command is given: files, folders, and a share of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import typer

from treg_med.errors import ConfigError, ResourceError

__all__ = ["expand_inputs", "parse_shard"]

# In a folder the extension decides what is looked at; what a file is, its content tells.
_EXTENSIONS = (".nii", ".nii.gz", ".h5", ".hdf5")


def expand_inputs(inputs: Sequence[Path]) -> list[Path]:
    """Return the scans of files and folders.

    Of a folder, hidden ones within, outputs of other tools (``derivatives``), our own results, and masks by their name
    are left out; of the masks a line on stderr tells.

    Raises
    ------
    ResourceError
        If a folder holds no scan.
    """
    from treg_med.data.writer import is_reconstruction
    from treg_med.training.prepare.scan_entry import is_mask_name

    found: list[Path] = []
    for path in inputs:
        if not path.is_dir():
            found.append(path)
            continue
        named = [p for p in sorted(path.rglob("*")) if _is_scan(p.relative_to(path)) and p.is_file()]
        scans = [p for p in named if not is_reconstruction(p)]
        inside = [p for p in scans if not is_mask_name(p.name)]
        if masks := len(scans) - len(inside):
            typer.echo(f"{path.name}: left out as masks by their names: {masks}", err=True)
        if not inside:
            raise ResourceError(
                f"expected scans ({', '.join(_EXTENSIONS)}) in the folder {path.name!r}, found none; name the files"
            )
        found += inside
    return found


def parse_shard(text: str | None) -> tuple[int, int]:
    """Return the number of a share, from 0, and how many there are, from ``"i/n"``.

    Raises
    ------
    ConfigError
        If the text is not of that form.
    """
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"expected --shard I/N with I from 0 to N - 1, such as 0/4, got {text!r}")
    return int(match[1]), int(match[2])


def _is_scan(path: Path) -> bool:
    hidden = any(part.startswith(".") or part == "derivatives" for part in path.parts)
    return not hidden and path.name.lower().endswith(_EXTENSIONS)

"""Reading the options that are more than a number or a path."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treg_med.errors import ConfigError, ResourceError

__all__ = ["make_folder", "parse_pairs", "reader_options"]


def parse_pairs(option: str, entries: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``NAME=VALUE`` entries; values are JSON or plain words.

    Raises
    ------
    ConfigError
        If an entry is not of that form.
    """
    values: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"expected {option} NAME=VALUE, got {entry!r}")
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:
            values[name.strip()] = value
    return values


def reader_options(volume: int | None, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for ``open_scan``: only those given, as a reader refuses what it does not know."""
    return dict(others) if volume is None else {**others, "volume": volume}


def make_folder(folder: Path) -> Path:
    """Make a folder for results and see that it can be written to.

    Raises
    ------
    ResourceError
        If that fails.
    """
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(
            f"expected a folder to write to, got {str(folder)!r} ({reason}); choose another --out"
        ) from error
    return folder

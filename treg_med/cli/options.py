"""Reading the options that are more than a number or a path."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treg_med.errors import ConfigError, GeometryError, ResourceError

__all__ = ["make_folder", "parse_pairs", "parse_settings", "parse_slices", "reader_options"]

# What "how many steps" is called by the solvers that have it.
_STEP_SETTINGS = ("steps", "max_iterations", "iterations")


def parse_slices(text: str | None, count: int) -> list[int]:
    """Return the slice numbers that ``text``, as ``"3"``, ``"10:20"`` or ``"::2"``, picks out of ``count``.

    Raises
    ------
    ConfigError
        If the text is not of that form.
    GeometryError
        If it picks nothing.
    """
    if text is None:
        return list(range(count))
    try:
        if ":" not in text:
            picked = [range(count)[int(text)]]
        else:
            parts = [int(part) if part.strip() else None for part in text.split(":")]
            picked = list(range(count))[slice(*parts)]
    except IndexError:
        raise GeometryError(f"expected a slice between 0 and {count - 1}, got --slices {text}") from None
    except (ValueError, TypeError):
        raise ConfigError(f"expected --slices A, A:B or A:B:STEP in whole numbers, got {text!r}") from None
    if not picked:
        raise GeometryError(f"expected --slices to pick at least one of {count} slices, got {text!r}")
    return sorted(picked)


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


def parse_settings(
    solver: str, entries: Sequence[str], steps: int | None, preset: str = "default"
) -> dict[str, Any]:
    """Return solver settings from ``NAME=VALUE`` entries and the number of steps.

    Raises
    ------
    ConfigError
        If an entry is not of that form, or the solver is unknown or has no steps.
    """
    from treg_med.solvers import solver_class

    settings = parse_pairs("--set", entries)
    names = {field.name for field in dataclasses.fields(solver_class(solver, preset))}
    if steps is not None:
        name = next((name for name in _STEP_SETTINGS if name in names), None)
        if name is None:
            raise ConfigError(
                f"expected a solver with iterations for --steps, got {solver!r}, which has none"
            )
        settings[name] = steps
    return settings


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

"""Slices as a user writes them."""

from __future__ import annotations

from treg_med.errors import ConfigError, GeometryError

__all__ = ["parse_slices"]


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

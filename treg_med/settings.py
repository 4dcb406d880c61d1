"""Validated, named settings: dataclass fields that know their range."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Hashable, Sequence
from dataclasses import field, fields
from functools import lru_cache
from typing import Any

from treg_med.errors import ConfigError

__all__ = ["check_settings", "setting"]


def setting(
    default: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Sequence[Any] | None = None,
    help: str = "",
) -> Any:
    """Declare a dataclass field with a default and a range.

    Parameters
    ----------
    default
        Value used when nothing is given.
    minimum, maximum
        Inclusive bounds.
    above
        Exclusive lower bound.
    choices
        The only values allowed.
    help
        One line saying what the value does and its unit.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "choices": choices, "help": help}
    return field(default=default, metadata=limits)


def check_settings(obj: Any) -> None:
    """Check the type and range of every field of the dataclass instance ``obj``.

    Raises
    ------
    ConfigError
        Naming the setting, what was expected and what came.
    """
    hints = _hints(typing.cast(Hashable, type(obj)))
    for entry in fields(obj):
        value = getattr(obj, entry.name)
        where = f"{type(obj).__name__}.{entry.name}"
        if not _has_type(value, hints[entry.name]):
            raise ConfigError(f"{where}: expected {_describe(hints[entry.name])}, got {value!r}")
        _check_range(where, value, entry.metadata)


@lru_cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check_range(where: str, value: Any, limits: typing.Mapping[str, Any]) -> None:
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        raise ConfigError(f"{where}: expected one of {', '.join(map(repr, choices))}; got {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value!r}")
    minimum, maximum, above = (limits.get(key) for key in ("minimum", "maximum", "above"))
    if minimum is not None and value < minimum:
        raise ConfigError(f"{where}: expected a value of at least {minimum}, got {value!r}")
    if maximum is not None and value > maximum:
        raise ConfigError(f"{where}: expected a value of at most {maximum}, got {value!r}")
    if above is not None and value <= above:
        raise ConfigError(f"{where}: expected a value above {above}, got {value!r}")


def _has_type(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, option) for option in typing.get_args(hint))
    if hint is Any or hint is type(None):
        return hint is Any or value is None
    if origin is not None:
        return isinstance(value, origin)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return getattr(hint, "__name__", str(hint))

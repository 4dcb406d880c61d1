"""Slices as a user writes them."""

from __future__ import annotations

import pytest

from treg_med.errors import ConfigError, GeometryError
from treg_med.runs.slice_range import parse_slices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("3", [3]),
        ("-1", [4]),
        ("1:3", [1, 2]),
        ("-2:", [3, 4]),
        ("::2", [0, 2, 4]),
        ("::-1", [0, 1, 2, 3, 4]),
        ("2:999", [2, 3, 4]),
    ],
)
def test_slices(text: str | None, expected: list[int]) -> None:
    assert parse_slices(text, 5) == expected


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("5", GeometryError, "between 0 and 4"),
        ("-6", GeometryError, "between 0 and 4"),
        ("9" * 40, GeometryError, "between 0 and 4"),
        ("3:3", GeometryError, "at least one of 5"),
        ("7:9", GeometryError, "at least one of 5"),
        ("", ConfigError, "whole numbers"),
        ("1.5", ConfigError, "whole numbers"),
        ("a:b", ConfigError, "whole numbers"),
        ("1:2:3:4", ConfigError, "whole numbers"),
        ("::0", ConfigError, "whole numbers"),
    ],
)
def test_bad_slices(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_slices(text, 5)

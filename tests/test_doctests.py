"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest


def _modules() -> list[str]:
    """Modules with an example, found by their text."""
    root = Path(__file__).resolve().parents[1]
    found = []
    for folder, package in (("treg_med", "treg_med"), ("operators", "treg_med.operators"), ("data", "treg_med.data")):
        for path in sorted((root / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(root / folder).with_suffix("").parts
                found.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return found


@pytest.mark.parametrize("name", _modules())
def test_examples(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0

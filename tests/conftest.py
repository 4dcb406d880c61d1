"""What every test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import ItemsView, Mapping
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
# Nothing in the tests may reach a network; the libraries are told before they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = ["tests.tiny_prior"]

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # Here and not in pyproject.toml, so that the tests also run beside an installed wheel.
    config.addinivalue_line("markers", "slow: longer than about five seconds")
    config.addinivalue_line("markers", "shared: needs the real data beside the repository")
    # A shell starts what it runs in the background with Ctrl-C ignored; some tests send it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The tensors are small: more threads wait for each other, for minutes where the machine is busy.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say which files of two folders differ, and where: what is in all of them hides it."""
    found, expected = (dict(side) if isinstance(side, ItemsView) else side for side in (left, right))
    if not (_holds_files(found) and _holds_files(expected)):
        return None
    told = [f"files {op} files"]
    told += [f"only on the left: {name}" for name in sorted(found.keys() - expected.keys())]
    told += [f"only on the right: {name}" for name in sorted(expected.keys() - found.keys()) if op == "=="]
    common = sorted(found.keys() & expected.keys())
    return told + [f"{n}: {_difference(found[n], expected[n])}" for n in common if found[n] != expected[n]]


def _holds_files(side: object) -> bool:
    return isinstance(side, Mapping) and bool(side) and all(isinstance(value, bytes) for value in side.values())


def _difference(left: bytes, right: bytes) -> str:
    at = next((k for k, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    near = slice(max(0, at - 60), at + 60)
    return f"from byte {at} of {len(left)} and {len(right)}: {left[near]!r} and {right[near]!r}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real data beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout; skips where the tests run without one."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("needs the repository: pyproject.toml is not beside tests/")
    return ROOT

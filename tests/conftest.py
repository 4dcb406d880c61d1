"""What every test shares."""

from __future__ import annotations

import os
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
    # The tensors are small: more threads wait for each other, for minutes where the machine is busy.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)


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

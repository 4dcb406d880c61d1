"""What the tests of runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package")
def ray_session() -> Iterator[None]:
    """One cluster with a GPU in name only for all tests: starting it takes seconds."""
    from treg_med.runs.ray_connection import connect

    assert connect(cpus=4, gpus=1)
    yield
    import ray

    ray.shutdown()

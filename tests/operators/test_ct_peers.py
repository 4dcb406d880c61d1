"""Projectors against other packages, where these are installed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.operators import ellipses
from treg_med.errors import ConfigError, ResourceError
from treg_med.operators import FanBeamCT, NonuniformFFT, ParallelBeamCT, check_operator
from treg_med.operators.astra_projector import AstraProjector

N = 48


def _fan(detector: Any = "flat") -> FanBeamCT:
    angles = torch.arange(20) * 2 * math.pi / 20 + 0.05
    return FanBeamCT(
        (N, N - 5), angles, 70, source_origin=120.0, origin_detector=60.0, pixel_size=0.9, bin_size=1.3, centre=33.2,
        detector=detector, mode="joseph",
    )  # fmt: skip


def _parallel(**options: Any) -> ParallelBeamCT:
    angles = torch.arange(20) * math.pi / 20 + 0.05
    return ParallelBeamCT((N, N - 5), angles, 70, pixel_size=0.9, bin_size=0.8, centre=33.2, **options)


def _astra() -> None:
    try:
        import astra  # noqa: F401
    except ImportError as error:
        pytest.skip(f"the ASTRA toolbox is not installed: {error}")


def test_joseph_is_that_of_astra() -> None:
    _astra()
    image = ellipses.image(N)[:, : N - 5]
    ours = _parallel(mode="joseph")
    theirs = AstraProjector(ours)
    assert float((theirs(image) - ours(image)).norm() / ours(image).norm()) < 1e-4
    noise = torch.randn(N, N - 5)
    assert float((theirs(noise) - ours(noise)).norm() / ours(noise).norm()) < 1e-4


def test_the_fan_is_that_of_astra() -> None:
    _astra()
    image = ellipses.image(N)[:, : N - 5]
    ours = _fan()
    # Another discretisation of the same rays.
    assert float((AstraProjector(ours)(image) - ours(image)).norm() / ours(image).norm()) < 0.04


def test_the_adapter_keeps_the_contract_of_operators() -> None:
    _astra()
    angles = torch.arange(5) * math.pi / 5
    adapter = AstraProjector(ParallelBeamCT((7, 6), angles, 9), "strip")
    assert check_operator(adapter, dtypes=(torch.float32,)).passed
    with pytest.raises(ConfigError, match="linear, line, strip"):
        AstraProjector(_parallel(), "line_fanflat")
    with pytest.raises(ConfigError, match="flat detector"):
        AstraProjector(_fan("curved"))


def test_finufft_gives_the_same_projections() -> None:
    pytest.importorskip("finufft")
    image = ellipses.image(N)[:, : N - 5]
    own, planned = _parallel(), _parallel(tolerance=1e-5)
    assert float((planned(image) - own(image)).norm() / own(image).norm()) < 1e-3
    assert check_operator(ParallelBeamCT((7, 6), torch.arange(5) * math.pi / 5, 9, tolerance=1e-3)).passed


def test_what_is_not_installed_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "astra", None)
    monkeypatch.setitem(__import__("sys").modules, "finufft", None)
    with pytest.raises(ResourceError, match="extra 'ct'"):
        AstraProjector(_parallel())
    with pytest.raises(ResourceError, match="finufft"):
        NonuniformFFT((8, 8), torch.zeros(1, 2), tolerance=1e-3)

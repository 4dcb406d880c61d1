"""Analytic reconstruction of exact line integrals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.operators import ellipses
from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import (
    ConeBeamCT,
    CTOperator,
    FanBeamCT,
    Identity,
    ParallelBeamCT,
    Weighted,
    filtered_backprojection,
)
from treg_med.operators.ramp_filter import FILTERS, ramp_filter
from treg_med.operators.view_weights import angular_steps, redundancy_weights

N = 96
TURN = 2 * math.pi


def _parallel(angles: Tensor, **options: Any) -> ParallelBeamCT:
    return ParallelBeamCT((N, N), angles, 141, **options)


def _fan(angles: Tensor, **options: Any) -> FanBeamCT:
    options = {"source_origin": 200.0, "origin_detector": 100.0, "bin_size": 1.4, **options}
    return FanBeamCT((N, N), angles, 160, **options)


def _psnr(operator: CTOperator, **options: Any) -> float:
    """PSNR inside the head's circle of the image from exact line integrals."""
    sinogram = ellipses.line_integrals(*operator.rays.lines(), N / 2).float()
    truth = ellipses.image(N)
    away = filtered_backprojection(operator, sinogram, **options) - truth
    place = torch.arange(N) - (N - 1) / 2
    inside = place[:, None].square() + place.square() < (0.9 * N / 2) ** 2
    return float(10 * torch.log10(truth.max() ** 2 / away[inside].square().mean()))


@pytest.mark.parametrize(
    ("operator", "least"),
    [
        (_parallel(torch.arange(160) * math.pi / 160), 25.0),
        (_parallel(torch.arange(160) * math.pi / 160, centre=66.4), 25.0),
        (_parallel(-torch.arange(200) * math.pi / 199 + 2), 25.0),
        (_parallel(torch.arange(320) * TURN / 320), 25.0),
        (_parallel(torch.arange(160) * math.pi / 160, mode="joseph", bin_size=0.8), 25.0),
        (_fan(torch.arange(320) * TURN / 320), 27.0),
        (_fan(-torch.arange(320) * TURN / 320, centre=75.0), 27.0),
        (_fan(torch.arange(320) * TURN / 320, detector="curved"), 27.0),
        (_fan(torch.arange(240) * TURN / 320), 27.0),
        (_fan(1 - torch.arange(240) * TURN / 320, detector="curved"), 27.0),
    ],
    ids=[
        "parallel", "parallel-off-centre", "parallel-reversed-inclusive", "parallel-turn", "joseph-fine-bins", "fan",
        "fan-reversed-off-centre", "fan-curved", "fan-short-scan", "fan-short-scan-curved-reversed",
    ],
)  # fmt: skip
def test_exact_line_integrals_give_the_image(operator: CTOperator, least: float) -> None:
    assert _psnr(operator) > least


def test_levels_are_attenuation_per_mm_whatever_the_lengths() -> None:
    disc = (torch.arange(64) - 31.5).square()[:, None] + (torch.arange(64) - 31.5).square() < 24**2
    for size in (0.1, 3.0):
        mu = 0.02 * disc.float()
        angles = torch.arange(120) * math.pi / 120
        parallel = ParallelBeamCT((64, 64), angles, 95, pixel_size=size, bin_size=size)
        fan = FanBeamCT(
            (64, 64), 2 * angles, 100, source_origin=200 * size, origin_detector=100 * size, pixel_size=size,
            bin_size=1.5 * size,
        )  # fmt: skip
        for operator in (parallel, fan):
            image = filtered_backprojection(operator, operator(mu))
            assert abs(float(image[24:40, 24:40].mean()) - 0.02) < 2e-4


def test_windows_smooth_in_their_order() -> None:
    operator = _parallel(torch.arange(60) * math.pi / 60)
    noise = torch.randn(operator.range_shape, generator=torch.Generator().manual_seed(0))
    levels = [float(filtered_backprojection(operator, noise, name).std()) for name in FILTERS]
    assert levels == sorted(levels, reverse=True)
    with pytest.raises(ConfigError, match="shepp-logan"):
        filtered_backprojection(operator, noise, "sharp")  # type: ignore[arg-type]


def test_the_ramp_removes_the_mean_exactly_and_does_not_wrap() -> None:
    profile = torch.zeros(1, 64)
    profile[0, 3] = 1.0
    kernel = ramp_filter(profile, 2.0)[0]
    assert math.isclose(float(kernel[3]), 1 / (4 * 2.0), rel_tol=1e-4)
    assert math.isclose(float(kernel[4]), -1 / (math.pi**2 * 2.0), rel_tol=1e-4)
    assert abs(float(kernel[5])) < 1e-6
    assert math.isclose(float(kernel[60]), -1 / (math.pi**2 * 57**2 * 2.0), rel_tol=1e-2)


def test_a_cut_off_projection_can_be_continued() -> None:
    disc = 0.02 * ((torch.arange(N) - 47.5).square()[:, None] + (torch.arange(N) - 47.5).square() < 46**2).float()
    operator = ParallelBeamCT((N, N), torch.arange(90) * math.pi / 90, 61)
    sinogram = operator(disc)
    inside = slice(28, 68)
    plain, extended = (filtered_backprojection(operator, sinogram, extend=e)[inside, inside] for e in (False, True))
    assert (extended - 0.02).abs().mean() < 0.25 * (plain - 0.02).abs().mean()


def test_weights_and_scales_are_undone_and_batches_kept() -> None:
    operator = _parallel(torch.arange(40) * math.pi / 40)
    x = torch.stack([ellipses.image(N), torch.rand(N, N)])
    y = operator(x)
    plain = filtered_backprojection(operator, y)
    weights = torch.rand(operator.range_shape) + 0.5
    weighted = 3 * Weighted(operator, weights)
    assert torch.allclose(filtered_backprojection(weighted, 3 * y * weights.sqrt()), plain, atol=1e-4)
    assert torch.allclose(filtered_backprojection(operator, y[1]), plain[1], atol=1e-5)
    with pytest.raises(ConfigError, match="iterative"):
        filtered_backprojection(Identity((4, 4), is_complex=False), torch.ones(4, 4))
    with pytest.raises(GeometryError):
        filtered_backprojection(operator, y[..., :-1])


def test_fdk_gives_the_level_of_a_ball() -> None:
    angles = torch.arange(90) * TURN / 90
    place = torch.arange(40) - 19.5
    ball = place.square()[10:30, None, None] / 64 + place.square()[:, None] / 225 + place.square() / 225 < 1
    operator = ConeBeamCT((20, 40, 40), angles, (36, 72), source_origin=150.0, origin_detector=75.0, bin_size=1.4)
    volume = filtered_backprojection(operator, operator(0.02 * ball.float()), "hann")
    assert abs(float(volume[8:12, 14:26, 14:26].mean()) - 0.02) < 2e-4
    assert float(volume[10, :4].abs().max()) < 2e-3


def test_views_share_the_circle() -> None:
    ten, twenty, sixty = (torch.arange(n, dtype=torch.float64) for n in (10, 20, 61))
    steps = angular_steps(ten * math.pi / 10, math.pi)
    assert torch.allclose(steps, torch.full((10,), math.pi / 10, dtype=steps.dtype))
    assert math.isclose(float(angular_steps(twenty * TURN / 20, math.pi).sum()), math.pi)
    wedge = angular_steps(sixty * math.pi / 180, math.pi)
    assert math.isclose(float(wedge.sum()), 61 * math.pi / 180)
    uneven = torch.tensor([0.0, 0.5, 0.6, 1.5, 2.0, 3.0], dtype=torch.float64)
    assert math.isclose(float(angular_steps(uneven, math.pi).sum()), math.pi)


@pytest.mark.parametrize("arc", [1.0, 3.0, math.pi + 0.4, math.pi + 0.9, TURN])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_line_of_a_fan_counts_once(arc: float, sign: int) -> None:
    views, bins = 1200, 201
    angles = sign * (torch.arange(views, dtype=torch.float64)) * arc / views
    fan = torch.linspace(-0.15, 0.15, bins, dtype=torch.float64)
    weights = redundancy_weights(angles, fan, arc)

    def at(turned: Tensor) -> Tensor:
        """Weights at angles ``(n, bins)`` from the start, zero where nothing was measured."""
        place = (turned / arc * views - 0.5).clamp(0, views - 1)
        left = place.floor().long().clamp_max(views - 2)
        value = torch.lerp(weights.gather(0, left), weights.gather(0, left + 1), place - left)
        return torch.where((turned >= 0) & (turned <= arc), value, 0)

    start = torch.linspace(0.01, arc - 0.01, 300, dtype=torch.float64)[:, None].expand(300, bins)
    flipped = weights.flip(1)
    total = at(start)
    weights = flipped
    for turn in (-math.pi, math.pi):
        total = total + at(start - sign * 2 * fan + turn)
    assert float((total - 1).abs().max()) < 0.03

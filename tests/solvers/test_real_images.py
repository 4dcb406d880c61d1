"""Solvers on real images: super-resolution, blur, inpainting, phase retrieval and saturation."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.conformance.solvers import gaussian_prior
from treg_med.data.records import Measurement, Reconstruction
from treg_med.errors import ConfigError
from treg_med.operators import (
    Blur,
    FourierMagnitude,
    Inpainting,
    LinearOperator,
    Operator,
    Saturation,
    SuperResolution,
    gaussian_kernel,
    gaussian_noise,
    random_pixel_mask,
)
from treg_med.solvers import get_solver

SHAPE = (32, 32)
NOISE = 0.02
LINEAR = ["inpainting", "super-resolution", "blur"]


@cache
def _forward(task: str) -> Operator:
    generator = torch.Generator().manual_seed(0)
    match task:
        case "inpainting":
            return Inpainting(random_pixel_mask(SHAPE, 0.5, generator=generator))
        case "super-resolution":
            return SuperResolution(SHAPE, 2)
        case "blur":
            return Blur(SHAPE, gaussian_kernel(9, 1.5))
        case "phase":
            return FourierMagnitude(SHAPE)
        case _:
            return Saturation(SHAPE)


@cache
def _truth() -> Tensor:
    """A draw of the prior, as a positive image."""
    prior = gaussian_prior()
    white = torch.randn(len(prior.covariance), generator=torch.Generator().manual_seed(1))
    drawn = prior.means[0] + (torch.linalg.cholesky(prior.covariance.double()).float() @ white).reshape(SHAPE)
    return ((drawn + 1) / 2).clamp_min(0)


def _measurement(task: str, noise: float | None = NOISE) -> Measurement:
    forward = _forward(task)
    clean = forward(_truth())
    y = clean + gaussian_noise(tuple(clean.shape), NOISE, torch.Generator().manual_seed(2))
    mask = getattr(forward, "mask", None)
    return Measurement(y if mask is None else y * mask, forward, noise_std=noise)  # type: ignore[arg-type]


def _solve(
    name: str, task: str, preset: str = "default", noise: float | None = NOISE, **settings: object
) -> Reconstruction:
    solver = get_solver(name, preset, **settings)
    return solver(
        _measurement(task, noise), prior=gaussian_prior(), text="", generator=torch.Generator().manual_seed(3)
    )


def _error(rec: Reconstruction) -> float:
    return float((rec.image - _truth()).square().mean().sqrt())


@pytest.mark.parametrize("task", LINEAR)
def test_total_variation_of_a_real_image_beats_the_backprojection(task: str) -> None:
    rec = _solve("tv", task)
    assert rec.image.dtype == torch.float32
    assert rec.residual == pytest.approx(1.0, abs=0.08)
    data = _measurement(task)
    assert isinstance(data.operator, LinearOperator)
    backprojected = float((data.operator.adjoint(data.y) - _truth()).square().mean().sqrt())
    assert _error(rec) < 0.7 * backprojected
    assert _error(rec) < 0.85 * _error(_solve("zero-filled", task))


@pytest.mark.parametrize("task", LINEAR)
@pytest.mark.parametrize("name", ["treg", "dds", "diffpir", "mpgd", "ldps", "psld", "p2l", "projdiff"])
def test_a_fitting_prior_beats_total_variation(name: str, task: str) -> None:
    rec = _solve(name, task, steps=12)
    assert rec.image.dtype == torch.float32
    assert _error(rec) < _error(_solve("tv", task))
    assert rec.residual < 1.05


def test_projdiff_reads_the_noise_of_every_singular_value() -> None:
    """A blur passes few directions whole; the published projection divides the noise by the small gain of the rest."""
    published, default, by_value = (_error(_solve("projdiff", "blur", damping=d)) for d in (0.0, 0.2, None))
    assert max(default, by_value) < 0.5 * published


@pytest.mark.parametrize("task", ["phase", "saturation"])
def test_gradient_methods_take_operators_that_are_not_linear(task: str) -> None:
    """From noise, with nothing but the derivatives of the forward model."""
    start = _solve("ldps", task, steps=30, step_size=0.0)
    found = _solve("ldps", task, steps=30)
    assert found.residual < 0.5 * start.residual
    resampled = _solve("resample", task, steps=12)
    assert resampled.residual < 0.5 * start.residual
    published = _solve("treg", task, "paper-gradient", steps=30, guidance_scale=1.0, data_until=0.0)
    assert published.residual < start.residual


def test_the_control_is_the_classical_image_brought_to_the_noise() -> None:
    control, classical = _solve("dds", "blur", use_prior=False), _solve("tv", "blur")
    assert control.nfe == 0
    assert float((control.image - classical.image).norm() / classical.image.norm()) < 0.02
    with pytest.raises(ConfigError, match="linear operator for the control"):
        _solve("ldps", "phase", use_prior=False)


@pytest.mark.parametrize("name", ["tv", "zero-filled", "cg-sense", "wavelet", "treg", "dds", "projdiff"])
def test_methods_that_need_an_adjoint_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match="FourierMagnitude is not linear; use one that follows gradients"):
        _solve(name, "phase")


def test_an_operator_with_absolute_levels_refuses_another_scale() -> None:
    data = _measurement("saturation")
    scaled = Measurement(data.y, data.operator, noise_std=NOISE, scale=3.0)
    with pytest.raises(ConfigError, match="scale 1 for Saturation"):
        get_solver("ldps")(scaled, prior=gaussian_prior())


def test_the_noise_of_real_data_is_estimated_and_said() -> None:
    rec = _solve("tv", "blur", noise=None)
    assert any("estimated from the data" in message for message in rec.warnings)
    assert rec.settings["noise_std"] == pytest.approx(NOISE, rel=0.3)

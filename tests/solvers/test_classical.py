"""What the classical solvers promise about quality, weights and phases."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from treg_med.data.records import Measurement
from treg_med.errors import ConfigError
from treg_med.operators import CartesianMRI, birdcage_maps, complex_gaussian_noise, random_mask
from treg_med.solvers import TotalVariation, get_solver
from treg_med.solvers.problem import Problem

SIDE = 80
NOISE = 0.02


@cache
def _scan(rough_phase: bool = False, coils: int = 4) -> Measurement:
    """Ellipses with a phase, R = 3 random columns."""
    axis = torch.linspace(-1, 1, SIDE)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    magnitude = 0.8 * ((rows / 0.9) ** 2 + (columns / 0.7) ** 2 < 1).float()
    magnitude -= 0.4 * ((rows / 0.8) ** 2 + (columns / 0.6) ** 2 < 1).float()
    for shift in (-0.3, 0.1, 0.4):
        magnitude += 0.3 * (((rows - shift) / 0.15) ** 2 + ((columns - shift / 2) / 0.2) ** 2 < 1).float()
    generator = torch.Generator().manual_seed(11)
    phase = 0.8 * torch.cos(2 * rows + 1) + 0.7 * rows * columns
    if rough_phase:
        phase = phase + 2.0 * torch.randn(SIDE, SIDE, generator=generator)
    image = torch.polar(magnitude, phase)
    mask = random_mask((SIDE, SIDE), 3.0, 0.1, generator=generator).mask
    operator = CartesianMRI(mask, birdcage_maps(coils, (SIDE, SIDE)) if coils > 1 else None)
    clean = operator(image)
    noise = complex_gaussian_noise(tuple(clean.shape), NOISE, generator) * mask
    return Measurement(y=clean + noise, operator=operator, noise_std=NOISE, target=image)


def _psnr(image: Tensor, data: Measurement) -> float:
    assert data.target is not None
    error = (image.abs() - data.target.abs()).square().mean().sqrt()
    return float(20 * torch.log10(data.target.abs().max() / error))


def test_order_of_the_methods() -> None:
    data = _scan()
    score = {
        name: _psnr(get_solver(*name)(data).image, data)
        for name in [("zero-filled",), ("cg-sense",), ("wavelet",), ("tv", "complex"), ("tv",)]
    }
    assert score["cg-sense",] > score["zero-filled",]
    assert score["wavelet",] > score["cg-sense",] + 1
    assert score["tv", "complex"] > score["wavelet",]
    assert score["tv",] > score["tv", "complex"] + 0.5


@pytest.mark.parametrize(("name", "target"), [("cg-sense", 0.9), ("wavelet", 0.93), ("tv", 0.97)])
def test_residual_reaches_the_target_without_a_reference(name: str, target: float) -> None:
    rec = get_solver(name)(_scan())
    assert rec.residual == pytest.approx(target, abs=0.03)
    assert rec.settings["weight"] > 0


def test_a_given_weight_is_kept() -> None:
    data = _scan()
    rec = get_solver("tv", weight=0.4, phase="none")(data)
    assert rec.settings["weight"] == pytest.approx(0.4 * NOISE, rel=1e-4)
    assert get_solver("tv", weight=2.0, phase="none")(data).residual > rec.residual
    assert get_solver("cg-sense", weight=0.0, max_iterations=4)(data).residual < 0.95


def test_tv_is_converged_where_it_stops() -> None:
    data = _scan()
    short = get_solver("tv")(data)
    long = get_solver("tv", max_iterations=80, tolerance=1e-5)(data)
    assert _psnr(short.image, data) > _psnr(long.image, data) - 0.15


def test_a_rough_phase_falls_back_to_complex_tv() -> None:
    rec = get_solver("tv")(_scan(rough_phase=True))
    plain = get_solver("tv", "complex")(_scan(rough_phase=True))
    assert rec.settings["phase_used"] == "none"
    assert any("complex TV was used" in message for message in rec.warnings)
    torch.testing.assert_close(rec.image, plain.image)
    assert get_solver("tv")(_scan()).settings["phase_used"] == "smooth"


def test_magnitude_and_phase_make_the_image() -> None:
    data = _scan()
    problem = Problem(y=data.y, operator=data.operator, noise_std=torch.tensor(NOISE), scale=torch.tensor(1.0))
    parts = TotalVariation(max_iterations=15).solve_phased(problem)
    torch.testing.assert_close(parts.magnitude * parts.rotation, parts.image)
    torch.testing.assert_close(parts.rotation.abs(), torch.ones(SIDE, SIDE))


def test_single_coil_without_maps() -> None:
    data = _scan(coils=1)
    assert _psnr(get_solver("tv")(data).image, data) > _psnr(get_solver("tv", "complex")(data).image, data)


def test_a_wrong_noise_level_is_said() -> None:
    data = _scan()
    rec = get_solver("wavelet", max_iterations=200)(replace(data, noise_std=NOISE / 20))
    assert any("noise level of the measurement may be wrong" in message for message in rec.warnings)


def test_bad_settings() -> None:
    cases: dict[str, dict[str, Any]] = {
        "tv": {"target": 0.0},
        "wavelet": {"levels": 0},
        "cg-sense": {"rule": "guess"},
    }
    for name, settings in cases.items():
        with pytest.raises(ConfigError):
            get_solver(name, **settings)

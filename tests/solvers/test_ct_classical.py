"""Classical solvers on sinograms: units, weights, noise, and the constraint of attenuations."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conformance.solvers import MU_WATER, SHAPE, ct_measurement, measurement
from treg_med.data.records import Measurement
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import ConeBeamCT, FourierMagnitude
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.operators.sinogram_noise import estimate_sinogram_noise_std
from treg_med.solvers import Problem, Solver, get_solver
from treg_med.solvers.differences import gradient, squared_length
from treg_med.solvers.problem import residual_in_noise_units
from treg_med.solvers.tv_splitting import TVSplitting


def _error(image: Tensor, data: Measurement) -> float:
    """Root-mean-square error in HU."""
    assert data.target is not None
    return 1000 / MU_WATER * float((image - data.target).square().mean().sqrt())


class _Probe(Solver):
    """Hands its problem out."""

    name = "probe"

    def solve(self, problem: Problem) -> Tensor:
        """Return zeros."""
        seen.append(problem)
        return torch.zeros(problem.operator.domain_shape)


class _UnweightedProbe(_Probe):
    weighted = False


seen: list[Problem] = []


def _problem(data: Measurement, weighted: bool = True) -> Problem:
    (_Probe() if weighted else _UnweightedProbe())(data)
    return seen.pop()


def test_problem_is_whitened_and_of_unit_norm() -> None:
    data = ct_measurement()
    assert data.target is not None and data.weights is not None and data.noise_std is not None
    problem = _problem(data)
    operator = problem.linear
    assert operator.norm() == pytest.approx(1, rel=1e-3)
    truth = data.target * problem.scale
    assert float(truth.max()) == pytest.approx(1)
    # Whitened noise is the same everywhere, and as large as the problem says.
    assert float(problem.residual(truth)) == pytest.approx(1, abs=0.1)
    misfit = (operator(truth) - problem.y) / problem.noise_std
    dark, bright = data.weights < 0.8, data.weights > 1.2
    assert float(misfit[dark].std()) == pytest.approx(float(misfit[bright].std()), rel=0.2)
    expected = residual_in_noise_units(data.operator, data.target, data.y, data.noise_std, data.weights)
    torch.testing.assert_close(problem.residual(truth), expected, rtol=1e-4, atol=0)


def test_unweighted_solvers_leave_out_what_was_not_measured_and_no_more() -> None:
    data = ct_measurement()
    assert data.weights is not None and data.noise_std is not None and data.target is not None
    problem = _problem(data, weighted=False)
    assert float(problem.residual(data.target * problem.scale)) == pytest.approx(1, abs=0.15)
    assert problem.operator.n_measured() == data.y.numel()
    gap = data.weights.clone()
    gap[3:6] = 0
    broken = torch.where(gap > 0, data.y, 50.0)
    for name in ("tv", "sirt", "cgls", "pwls-tv"):
        rec = get_solver(name)(replace(data, weights=gap, y=broken))
        assert _error(rec.image, data) < 250, name
    assert _problem(replace(data, weights=gap)).operator.n_measured() == 17 * 47
    assert _problem(replace(data, weights=gap), weighted=False).operator.n_measured() == 17 * 47


@pytest.mark.parametrize("name", ["fbp", "sirt", "cgls", "tv", "pwls-tv"])
def test_lengths_may_be_in_any_unit(name: str) -> None:
    """The same scan in units of 8 mm: attenuations per unit are eight times those per mm, to the last bit."""
    data = ct_measurement()
    operator = data.operator
    assert isinstance(operator, ParallelBeamCT)
    longer = ParallelBeamCT(
        SHAPE, operator.angles, operator.n_bins, pixel_size=operator.pixel_size / 8, bin_size=operator.bin_size / 8
    )
    other = replace(data, operator=longer, scale=data.scale / 8, mu_water=8 * MU_WATER, target=None)
    solver = get_solver(name)
    first, second = solver(data), solver(other)
    torch.testing.assert_close(second.hounsfield, first.hounsfield, rtol=1e-5, atol=0.01)
    assert second.residual == pytest.approx(first.residual, rel=1e-5)


def test_scale_is_found_where_none_is_given() -> None:
    data = replace(ct_measurement(), scale=1.0)
    problem = _problem(data)
    assert any("set from a first image" in message for message in problem.warnings)
    assert data.target is not None
    assert 0.5 < float((data.target * problem.scale).max()) < 2


def test_order_of_the_methods() -> None:
    data = ct_measurement()
    error = {name: _error(get_solver(name)(data).image, data) for name in ("fbp", "sirt", "tv", "pwls-tv")}
    assert error["sirt"] < error["fbp"]
    assert error["pwls-tv"] < error["sirt"]
    assert error["pwls-tv"] < error["tv"] * 1.02


def _objective(problem: Problem, image: Tensor, weight: float) -> float:
    misfit = (problem.operator(image) - problem.y).square().sum() / 2
    return float(misfit + weight * squared_length(gradient(image)).sqrt().sum())


def test_constrained_total_variation_reaches_the_optimum() -> None:
    """Against the dual certificate of the constrained problem and against small changes that keep the constraint."""
    problem = _problem(ct_measurement())
    weight = 0.05 * float(problem.noise_std)
    start = problem.linear.adjoint(problem.y)[None]
    diagonal = problem.linear.fourier_diagonal().values

    def solved(pin: float | None, iterations: int, threshold: float = 0.04) -> Tensor:
        state = TVSplitting(
            problem.linear.gram, start, diagonal, 0 * start, threshold=threshold, inner_iterations=8, pin=pin
        )
        state.run(iterations, torch.tensor([weight]), torch.tensor([True]))
        return state.feasible_image[0]

    image = solved(2.0, 120)
    best = _objective(problem, image, weight)
    assert float(image.min()) == 0
    assert _objective(problem, solved(None, 40), weight) < best, "the constraint is active here"
    # Another split of another strength has the same limit.
    other = solved(0.5, 120, 0.1)
    assert float((other - image).norm() / image.norm()) < 0.01
    assert _objective(problem, other, weight) == pytest.approx(best, rel=5e-3)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2):
        for _ in range(5):
            nudged = (image + size * torch.randn(SHAPE, generator=generator)).clamp_min(0)
            assert _objective(problem, nudged, weight) > best
    # Where a pixel is above zero the optimum is stationary: the slope pairs with the image to minus the penalty.
    slope = (image * problem.linear.adjoint(problem.operator(image) - problem.y)).sum()
    penalty = weight * squared_length(gradient(image)).sqrt().sum()
    assert float(slope) == pytest.approx(-float(penalty), rel=0.03)
    # The default stops close to it.
    short = solved(2.0, 25)
    assert float((short - image).norm() / image.norm()) < 0.03


def test_attenuations_are_not_negative_unless_asked() -> None:
    data = ct_measurement()
    assert float(get_solver("pwls-tv")(data).image.min()) >= 0
    assert float(get_solver("sirt")(data).image.min()) >= 0
    assert float(get_solver("pwls-tv", nonnegative=False)(data).image.min()) < 0
    assert float(get_solver("sirt", nonnegative=False)(data).image.min()) < 0
    with pytest.raises(ConfigError, match="complex"):
        get_solver("tv", nonnegative=True)(measurement())


def test_fourier_diagonal_of_a_projector_falls_as_one_over_the_frequency() -> None:
    """A^H A blurs by 1 / r where views are dense, whose spectrum is 1 / k; nothing is left at zero."""
    angles = torch.arange(96, dtype=torch.float64) * math.pi / 96
    diagonal = ParallelBeamCT(SHAPE, angles, 47, pixel_size=3.0, bin_size=3.0).fourier_diagonal().values
    assert diagonal.shape == SHAPE and float(diagonal.min()) > 0.9e-4 * float(diagonal.max())
    assert float(diagonal.argmax()) == 0
    frequency = torch.fft.fftfreq(32)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    ring = (radius > 0.1) & (radius < 0.35)
    flat = (diagonal * radius)[ring]
    assert float(flat.std() / flat.mean()) < 0.35


@pytest.mark.parametrize("weighted", [True, False])
def test_noise_of_a_sinogram(weighted: bool) -> None:
    data = ct_measurement()
    assert data.weights is not None and data.noise_std is not None
    generator = torch.Generator().manual_seed(0)
    clean = data.operator(data.target)
    noise = data.noise_std / data.weights.sqrt() * torch.randn(clean.shape, generator=generator)
    rms = float(noise.square().mean().sqrt())
    noise = noise * 20  # Above the detail of this coarse scan.
    found = estimate_sinogram_noise_std(clean + noise, data.weights if weighted else None)
    assert found / 20 == pytest.approx(data.noise_std if weighted else rms, rel=0.2)
    rec = get_solver("pwls-tv")(replace(data, noise_std=None))
    assert any("noise_std was not given" in message for message in rec.warnings)


def test_noise_of_degenerate_sinograms() -> None:
    assert estimate_sinogram_noise_std(torch.zeros(4, 20)) == 0
    assert math.isfinite(estimate_sinogram_noise_std(torch.rand(1, 4)))
    weights = torch.ones(6, 16)
    weights[:, 8:] = 0
    data = torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    assert estimate_sinogram_noise_std(data, weights) == pytest.approx(1, rel=0.4)


def test_bad_weights_and_water_are_refused() -> None:
    data = ct_measurement()
    assert data.weights is not None
    for bad in (-data.weights, 0 * data.weights, data.weights / 0):
        with pytest.raises(NumericsError, match="weights"):
            replace(data, weights=bad)
    with pytest.raises(GeometryError, match="expected weights of shape"):
        replace(data, weights=data.weights[None])
    with pytest.raises(NumericsError, match="mu_water"):
        replace(data, mu_water=0.0)
    rec = get_solver("cgls")(replace(data, mu_water=None))
    with pytest.raises(ConfigError, match="mu_water"):
        _ = rec.hounsfield
    forward = FourierMagnitude((8, 8))
    y = forward(torch.rand(8, 8))
    with pytest.raises(ConfigError, match="linear operator for data with statistical weights"):
        phaseless = Measurement(y=y, operator=forward, noise_std=0.1, weights=torch.ones_like(y))
        get_solver("ldps")(phaseless, prior=object())
    with pytest.raises(ConfigError, match="real operator"):
        get_solver("sirt")(measurement())
    with pytest.raises(ConfigError, match="beam"):
        get_solver("fbp")(measurement(1))


def test_hounsfield_units() -> None:
    data = ct_measurement()
    rec = get_solver("pwls-tv")(data)
    torch.testing.assert_close(rec.hounsfield, 1000 * (rec.image / MU_WATER - 1), rtol=1e-5, atol=1e-3)
    assert "mu_water" in repr(data) and "weights" in repr(data)


def test_complex_data_may_have_weights() -> None:
    data = measurement()
    weights = torch.ones(data.operator.range_shape)
    weights[:, :, ::2] = 0.25
    problem = _problem(replace(data, weights=weights))
    assert "Weighted" in repr(problem.operator)
    assert problem.linear.norm() == pytest.approx(1.0, rel=1e-2)
    assert problem.operator.n_measured() == data.operator.n_measured()
    plain = get_solver("cg-sense")(data)
    even = get_solver("cg-sense")(replace(data, weights=torch.ones(data.operator.range_shape)))
    torch.testing.assert_close(even.image, plain.image, rtol=1e-3, atol=1e-4)


def test_volumes_of_a_cone_beam() -> None:
    """The methods that know no neighbourhood take volumes; the others say so."""
    angles = torch.arange(24) * 2 * math.pi / 24
    operator = ConeBeamCT((6, 24, 24), angles, (14, 40), source_origin=90.0, origin_detector=45.0, bin_size=1.6)
    place = torch.arange(24) - 11.5
    inside = place.square()[:, None] / 81 + place.square() / 64 < 1
    volume = 0.02 * inside.float() * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0])[:, None, None]
    y = operator(volume)
    data = Measurement(
        y=y + 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)), operator=operator, noise_std=0.01
    )
    for name in ("fbp", "sirt", "cgls"):
        rec = get_solver(name)(data)
        assert rec.image.shape == volume.shape
        assert float((rec.image - volume).norm() / volume.norm()) < 0.5
    assert rec.residual == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ConfigError, match="use fbp, sirt or cgls"):
        get_solver("pwls-tv")(data)

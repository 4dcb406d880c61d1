"""TReg against the closed-form posterior of a Gaussian prior."""

from functools import cache

import pytest
import torch
from torch import Tensor

from treg_med.data.records import Measurement, Reconstruction
from treg_med.errors import ConfigError
from treg_med.operators import CartesianMRI, LinearOperator, complex_gaussian_noise
from treg_med.priors import GaussianPrior
from treg_med.solvers.treg import TReg

SIDE = 16
NOISE = 0.02


@cache
def _prior() -> GaussianPrior:
    """Smooth positive images: mean 0.5 in magnitude, standard deviation 0.06, correlated over four pixels."""
    index = torch.arange(SIDE, dtype=torch.float64)
    rows, columns = torch.meshgrid(index, index, indexing="ij")
    points = torch.stack([rows.flatten(), columns.flatten()], 1)
    covariance = 0.12**2 * torch.exp(-torch.cdist(points, points) / 4) + 1e-5 * torch.eye(
        SIDE**2, dtype=torch.float64
    )
    envelope = torch.exp(-((points - 7.5).square().sum(1) / 60)).reshape(SIDE, SIDE)
    return GaussianPrior({"": envelope * 1.2 - 1, "dark": envelope * 0.4 - 1}, covariance)


def _operator() -> CartesianMRI:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[:, 4:12] = True
    mask[:, [0, 2, 14]] = True
    return CartesianMRI(mask)


def _posterior_mean(
    prior: GaussianPrior, operator: LinearOperator, y: Tensor, level: float, text: str = ""
) -> Tensor:
    """Closed form for a real image of known phase zero, in magnitude units with `level` mapped to one."""
    basis = torch.eye(SIDE**2, dtype=torch.complex128).reshape(-1, SIDE, SIDE)
    columns = operator(basis)[:, 0][:, operator.mask].T
    system = torch.cat([columns.real, columns.imag]) / level
    data = torch.cat([y[0][operator.mask].real, y[0][operator.mask].imag])
    mean = (prior.embed(text).flatten() + 1) / 2
    covariance = prior.covariance / 4
    gain = (
        covariance
        @ system.T
        @ torch.linalg.inv(
            system @ covariance @ system.T + NOISE**2 / 2 * torch.eye(len(data), dtype=torch.float64)
        )
    )
    return ((mean + gain @ (data - system @ mean)) / level).reshape(SIDE, SIDE)


def _case(seed: int) -> tuple[Measurement, Tensor, Tensor]:
    prior, operator = _prior(), _operator()
    generator = torch.Generator().manual_seed(seed)
    x = prior.means[0].flatten() + torch.linalg.cholesky(prior.covariance) @ torch.randn(
        SIDE**2, generator=generator, dtype=torch.float64
    )
    truth = (x.reshape(SIDE, SIDE) + 1) / 2
    noise = (
        complex_gaussian_noise(operator.range_shape, NOISE, generator=generator, dtype=torch.complex128)
        * operator.mask
    )
    y = operator(truth.to(torch.complex128)) + noise
    return (
        Measurement(y=y, operator=operator, noise_std=NOISE),
        truth,
        _posterior_mean(prior, operator, y, 1.0),
    )


SAMPLING = {**TReg.presets["generative"], "guidance_scale": 1.0}


def _solve(case: Measurement, seed: int = 0, **settings: object) -> Reconstruction:
    return TReg(**{**SAMPLING, **settings})(
        case, prior=_prior(), text="", generator=torch.Generator().manual_seed(seed)
    )


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("start", ["classical", "noise"])
def test_result_is_as_close_to_the_posterior_mean_as_a_posterior_sample(start: str) -> None:
    """An exact sampler lies one posterior deviation from the mean, and sqrt(2) of it from the truth."""
    to_mean, to_truth, deviation = [], [], []
    for seed in range(3):
        case, truth, mean = _case(seed)
        image = _solve(case, start=start, start_noise=0.36, steps=40).image
        to_mean.append(_rms(image.abs() - mean))
        to_truth.append(_rms(image.abs() - truth))
        deviation.append(_rms(mean - truth))
    spread = sum(deviation)
    assert sum(to_mean) / spread < 1.0
    assert sum(to_truth) / spread < 1.35


def test_the_prior_improves_on_its_control() -> None:
    errors = {True: 0.0, False: 0.0}
    for seed in range(3):
        case, truth, _ = _case(seed)
        for use_prior in errors:
            errors[use_prior] += _rms(
                _solve(case, start_noise=0.36, steps=40, use_prior=use_prior).image.abs() - truth
            )
    assert errors[True] < errors[False]


def test_the_default_estimates_the_posterior_mean() -> None:
    """Half a posterior deviation from the mean; the classical start alone lies farther off, a sample at one."""
    to_mean, to_truth = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    deviation = 0.0
    for seed in range(3):
        case, truth, mean = _case(seed)
        for use_prior in to_mean:
            image = TReg(use_prior=use_prior)(
                case, prior=_prior(), text="", generator=torch.Generator().manual_seed(seed)
            ).image.abs()
            to_mean[use_prior] += _rms(image - mean)
            to_truth[use_prior] += _rms(image - truth)
        deviation += _rms(mean - truth)
    assert to_mean[True] < 0.5 * deviation < 0.7 * deviation < to_mean[False]
    assert to_truth[True] < 1.12 * deviation


def test_residual_is_at_the_noise_level() -> None:
    residuals = [
        solver(_case(seed)[0], prior=_prior(), text="", generator=torch.Generator().manual_seed(0)).residual
        for seed in range(3)
        for solver in (TReg(**SAMPLING), TReg())
    ]
    assert all(0.9 < residual < 1.1 for residual in residuals)


@pytest.mark.parametrize("solver", [TReg(), TReg(**SAMPLING)], ids=["default", "sampling"])
def test_words_move_the_image_as_the_posterior_says(solver: TReg) -> None:
    """Both texts have their closed-form posterior mean: so has what a word may change, and the data say most of it."""
    case, _, _ = _case(0)
    prior, operator = _prior(), case.operator
    images = [
        solver(case, prior=prior, text=text, generator=torch.Generator().manual_seed(0)).image
        for text in ("", "dark")
    ]
    change = images[1] - images[0]
    exact = _posterior_mean(prior, operator, case.y, 1.0, "dark") - _posterior_mean(prior, operator, case.y, 1.0)
    moved = images[1].abs() - images[0].abs()
    assert float((moved * exact).sum() / moved.norm() / exact.norm()) > 0.85
    assert 0.5 < _rms(moved) / _rms(exact) < 2
    measured = _rms(operator(change).abs()) * SIDE / float(operator.mask.sum()) ** 0.5
    assert measured < NOISE / 4, "the words may not move what was measured"


def test_same_seed_same_bits_and_batches_do_not_mix() -> None:
    first, second = _case(0)[0], _case(1)[0]
    both = Measurement(y=torch.stack([first.y, second.y]), operator=first.operator, noise_std=NOISE)
    together = _solve(both, seed=3).image
    assert torch.equal(_solve(first, seed=3).image, _solve(first, seed=3).image)
    assert not torch.equal(_solve(first, seed=3).image, _solve(first, seed=4).image)
    for index, single in enumerate((first, second)):
        assert torch.allclose(together[index], _solve(single, seed=3).image, atol=1e-8)


def test_every_evaluation_is_counted() -> None:
    case, _, _ = _case(0)
    assert _solve(case, steps=5).nfe == 5
    assert _solve(case, steps=5, guidance_scale=2.0).nfe == 10
    assert _solve(case, steps=5, antithetic=True).nfe == 10
    assert _solve(case, steps=5, use_prior=False).nfe == 0


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="steps"):
        TReg(steps=0)
    with pytest.raises(ConfigError, match="start"):
        TReg(start="somewhere")
    with pytest.raises(ConfigError, match="prior"):
        TReg()(_case(0)[0])

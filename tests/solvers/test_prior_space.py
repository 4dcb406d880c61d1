"""The inverse problem as a prior sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.solvers.exact import NOISE, SIDE, data, gaussian_prior, operator, posterior_mean, space
from treg_med.codec import ImageCodec
from treg_med.errors import ConfigError, NumericsError
from treg_med.operators import CartesianMRI, FourierMagnitude, Inpainting, birdcage_maps
from treg_med.priors import GaussianPrior
from treg_med.priors.base import Prediction
from treg_med.solvers import get_solver
from treg_med.solvers.ddim import ddim_steps
from treg_med.solvers.prior_space import PriorSpace
from treg_med.solvers.problem import Problem


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _coil_space() -> PriorSpace:
    """Two complex images of odd size that the prior sees turned, scaled and padded."""
    shape = (6, 9)
    mask = torch.rand(shape, generator=_generator()) < 0.6
    forward = CartesianMRI(mask, birdcage_maps(3, shape))
    image = torch.randn(2, *shape, dtype=torch.complex128, generator=_generator(1))
    y = forward(image)
    codec = ImageCodec(
        shape,
        4,
        torch.tensor([0.5, 2.0], dtype=torch.float64),
        to_upright=lambda x: torch.rot90(x, 1, (-2, -1)),
        from_upright=lambda x: torch.rot90(x, -1, (-2, -1)),
    )
    noise = torch.tensor([0.1, 0.2], dtype=torch.float64)
    problem = Problem(y, forward, noise, torch.ones(2, dtype=torch.float64), gaussian_prior(), "")
    return PriorSpace(problem, gaussian_prior(), codec, torch.sgn(image))


def _blank(problem: PriorSpace) -> Tensor:
    return problem.codec.pad(torch.zeros(*problem.batch_shape, *problem.codec.shape, dtype=torch.float64))


def test_backprojection_is_the_adjoint_and_gram_the_product() -> None:
    problem = _coil_space()
    blank = _blank(problem)
    assert blank.shape == (2, 1, 12, 8)
    x = torch.randn(blank.shape, generator=_generator(2), dtype=torch.float64)
    r = torch.randn(2, 3, 6, 9, generator=_generator(3), dtype=torch.complex128)
    moved = problem.misfit(x) - problem.misfit(torch.zeros_like(x))
    left = (moved * r.conj()).real.flatten(1).sum(1)
    right = (x * problem.backproject(r)).flatten(1).sum(1)
    assert torch.allclose(left, right)
    assert torch.allclose(problem.gram(x), problem.backproject(moved))


def test_units_are_those_of_images_in_the_range_of_the_prior() -> None:
    """The misfit is A applied to prior images, and the noise goes with it; the residual has no unit."""
    images, y = data(3)
    problem = space(y)
    assert torch.allclose(problem.noise_std, torch.full((3,), 2 * NOISE / 2**0.5, dtype=torch.float64))
    moved = problem.misfit(images[:, None] + 1e-3) - problem.misfit(images[:, None])
    constant = operator()(torch.full((SIDE, SIDE), 1e-3, dtype=torch.complex128))
    assert torch.allclose(moved, constant.expand_as(moved))
    magnitude = ((images + 1) / 2).to(torch.complex128)
    assert torch.allclose(problem.residual(images[:, None]), problem.problem.residual(magnitude))
    assert torch.allclose(problem.residual(images[:, None]), torch.ones(3, dtype=torch.float64), atol=0.15)


def test_data_step_is_the_regularised_least_squares_solution_of_every_item() -> None:
    problem = _coil_space()
    x0 = torch.randn(_blank(problem).shape, generator=_generator(4), dtype=torch.float64)
    weight = torch.tensor([0.1, 3.0], dtype=torch.float64)
    solved = problem.data_step(x0, weight, max_iter=200, rtol=1e-12)
    slope = problem.backproject(problem.misfit(solved)) + weight[:, None, None, None] * (solved - x0)
    assert float(slope.abs().max()) < 1e-9
    nearest = problem.data_step(x0, 0.0, max_iter=500, rtol=1e-13)
    assert float(problem.backproject(problem.misfit(nearest)).abs().max()) < 1e-8


def test_hermitian_products_reach_any_accuracy() -> None:
    """With r^T r in place of r^H r the iteration leaves the solution of complex systems after a few steps."""
    problem = _coil_space()
    x0 = torch.zeros_like(_blank(problem))
    few, many = (problem.data_step(x0, 1e-3, max_iter=n, rtol=0.0) for n in (5, 120))

    def slope(x: Tensor) -> float:
        return float((problem.backproject(problem.misfit(x)) + 1e-3 * (x - x0)).norm())

    assert slope(many) < 1e-8 * slope(few)


def test_a_nan_names_its_step_and_component() -> None:
    class Broken(GaussianPrior):
        def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
            prediction = super().predict(latent, timestep, condition)
            late = bool((torch.as_tensor(timestep) < 500).any())
            return Prediction(prediction.noise, prediction.clean * (torch.nan if late else 1.0))

    _, y = data(1)
    problem = space(y)
    good = gaussian_prior()
    problem.prior = Broken(dict(zip(good.texts, good.means, strict=True)), good.covariance)
    with pytest.raises(NumericsError, match="step 6: the denoiser gave NaN"):
        get_solver("dds", "paper", steps=10).sample(problem)  # type: ignore[attr-defined]


def test_methods_that_solve_linear_systems_refuse_others() -> None:
    forward = FourierMagnitude((SIDE, SIDE))
    y = forward(torch.rand(SIDE, SIDE, generator=_generator(), dtype=torch.float64))
    one = torch.ones((), dtype=torch.float64)
    problem = PriorSpace(Problem(y, forward, 0.1 * one, one, gaussian_prior(), ""), gaussian_prior(), _codec())
    with pytest.raises(ConfigError, match="FourierMagnitude is not linear; use one that follows gradients"):
        problem.data_step(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64), 1.0, max_iter=3)
    assert problem.misfit(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)).shape == (1, 24, 24)


def _codec() -> ImageCodec:
    return ImageCodec((SIDE, SIDE), 1)


def test_real_images_need_no_phase() -> None:
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[4:8, 5:9] = False
    forward = Inpainting(mask)
    truth = data(1)[0]
    y = forward((truth + 1) / 2)
    one = torch.ones(1, dtype=torch.float64)
    problem = PriorSpace(Problem(y, forward, 1e-3 * one, one, gaussian_prior(), ""), gaussian_prior(), _codec())
    filled = problem.data_step(torch.zeros_like(truth[:, None]), 0.0, max_iter=20)
    assert torch.allclose(filled[:, 0][:, mask], truth[:, mask])
    assert bool((filled[:, 0][:, ~mask] == 0).all())
    assert problem.numbers == int(mask.sum())


def test_evaluations_count_both_passes_of_guidance() -> None:
    _, y = data(2)
    problem = space(y, text="dark")
    step = ddim_steps(gaussian_prior(), 10, problem.blank_latent())[0]
    for scale, expected in ((1.0, 1), (0.0, 2), (3.0, 4)):
        problem.predict(problem.blank_latent(), step, scale)
        assert problem.problem.nfe == expected


def test_the_closed_form_of_these_tests_is_that_of_the_operator() -> None:
    images, y = data(64, 5)
    error = (posterior_mean(y) - images).square().mean().sqrt()
    prior = (gaussian_prior().means[0] - images).square().mean().sqrt()
    assert error < 0.5 * prior

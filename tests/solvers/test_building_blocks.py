"""The parts of the classical solvers: differences, wavelets, preconditioner, weights, phase, splitting."""

import pytest
import torch
from torch import Tensor

from tests.conformance.solvers import NOISE, measurement
from treg_med.errors import ConfigError
from treg_med.operators import CartesianMRI, Identity, LinearOperator, birdcage_maps, random_mask
from treg_med.solvers.data_step import CarriedPhase
from treg_med.solvers.differences import (
    divergence,
    gradient,
    inner,
    laplacian,
    laplacian_spectrum,
    shrink,
    squared_length,
)
from treg_med.solvers.discrepancy import WeightSearch
from treg_med.solvers.phase import refine_rotation, smooth_rotation
from treg_med.solvers.total_variation import PhasedImage
from treg_med.solvers.tv_splitting import TVSplitting
from treg_med.solvers.wavelets import OrthogonalWavelet


def _random(*shape: int, complex_: bool = True, seed: int = 0) -> Tensor:
    dtype = torch.complex128 if complex_ else torch.float64
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("complex_", [True, False])
def test_divergence_is_minus_the_adjoint_of_the_gradient(complex_: bool) -> None:
    x, p = _random(3, 7, 10, complex_=complex_), _random(2, 3, 7, 10, complex_=complex_, seed=1)
    torch.testing.assert_close(inner(gradient(x), p).sum(0), -inner(x, divergence(p)))
    torch.testing.assert_close(-divergence(gradient(x)), laplacian(x))
    spectrum = laplacian_spectrum((7, 10), x.device).double()
    torch.testing.assert_close(torch.fft.ifft2(spectrum * torch.fft.fft2(x)), laplacian(x) + 0j, atol=1e-5, rtol=1e-5)


def test_shrink_is_the_proximal_map_of_the_length() -> None:
    field = _random(2, 1, 5, 6)
    length = squared_length(field).sqrt()
    torch.testing.assert_close(length, field.abs().square().sum(0).sqrt())
    expected = field * (1 - 0.7 / length).clamp_min(0)
    torch.testing.assert_close(shrink(field, 0.7), expected)


@pytest.mark.parametrize("shape", [(32, 32), (48, 33), (31, 64)])
@pytest.mark.parametrize("complex_", [True, False])
def test_wavelet_is_inverted_at_any_size(shape: tuple[int, int], complex_: bool) -> None:
    wavelet = OrthogonalWavelet(shape, 3, torch.float64, torch.device("cpu"))
    image = _random(2, *shape, complex_=complex_)
    before = image.clone()
    coefficients = wavelet.forward(image)
    torch.testing.assert_close(wavelet.inverse(coefficients), image)
    assert torch.equal(image, before)


def test_wavelet_is_orthogonal_and_kills_cubics() -> None:
    wavelet = OrthogonalWavelet((64, 64), 1, torch.float64, torch.device("cpu"))
    image = _random(64, 64)
    coefficients = wavelet.forward(image)
    torch.testing.assert_close(coefficients.norm(), image.norm())
    position = torch.linspace(-1, 1, 64, dtype=torch.float64)
    cubic = (position**3 - position)[:, None].expand(64, 64).contiguous()
    details = wavelet.forward(cubic)[32:60]
    assert float(details.abs().max()) < 1e-6


def test_wavelet_needs_room() -> None:
    assert OrthogonalWavelet((16, 40), 5, torch.float32, torch.device("cpu")).levels == 2
    with pytest.raises(ConfigError, match="at least 8 pixels"):
        OrthogonalWavelet((7, 40), 3, torch.float32, torch.device("cpu"))


def test_fourier_diagonal_is_the_diagonal() -> None:
    shape = (6, 8)
    mask = random_mask(shape, 2.0, 0.2, generator=torch.Generator().manual_seed(1)).mask
    maps = birdcage_maps(3, shape, dtype=torch.complex128) * torch.polar(
        torch.ones(shape, dtype=torch.float64), _random(*shape, complex_=False)
    )
    operator = CartesianMRI(mask, maps)
    basis = torch.eye(48, dtype=torch.complex128).reshape(48, *shape)
    columns = torch.fft.fft2(operator.gram(torch.fft.ifft2(basis))).reshape(48, 48)
    torch.testing.assert_close(
        operator.fourier_diagonal().values.double().flatten(), columns.diagonal().real, atol=1e-5, rtol=1e-4
    )


def test_fourier_diagonal_of_anything_else_is_constant() -> None:
    diagonal = (2 * Identity((4, 6))).fourier_diagonal().values
    assert diagonal.shape == (4, 6)
    torch.testing.assert_close(diagonal, torch.full((4, 6), 2.0), rtol=1e-3, atol=0)


def test_weight_search_reaches_the_target_for_each_item() -> None:
    search = WeightSearch(torch.tensor([1.0, 0.01, 30.0]), 0.95)
    exponent, level = torch.tensor([0.05, 0.4, 0.2]), torch.tensor([1.0, 2.0, 0.9])
    alone = WeightSearch(torch.tensor([0.01]), 0.95)
    for _ in range(30):
        search.update(level * search.weight**exponent)
        alone.update(level[1:2] * alone.weight ** exponent[1:2])
    torch.testing.assert_close(level * search.weight**exponent, torch.full((3,), 0.95), atol=0.011, rtol=0)
    assert bool(search.done.all())
    torch.testing.assert_close(alone.weight, search.weight[1:2])


def test_weight_search_says_when_it_is_stuck() -> None:
    search = WeightSearch(torch.tensor([1.0]), 0.95, bounds=(0.1, 10.0))
    for _ in range(20):
        search.update(torch.tensor([2.0]))
    assert bool(search.stuck)
    assert float(search.weight) == pytest.approx(0.1)
    fixed = WeightSearch(torch.tensor([1.0]), 0.95, fixed=True)
    fixed.update(torch.tensor([2.0]))
    assert float(fixed.weight) == 1.0


def _splitting(operator: LinearOperator, y: Tensor) -> TVSplitting:
    start = operator.adjoint(y)[None]
    return TVSplitting(operator.gram, start, operator.fourier_diagonal().values, start, inner_iterations=6)


def test_splitting_minimises_the_total_variation_objective() -> None:
    data, weight = measurement(), torch.tensor([0.004])
    state = _splitting(data.operator, data.y)
    state.run(150, weight, torch.tensor([True]))

    def objective(image: Tensor) -> float:
        misfit = (data.operator(image) - data.y).abs().square().sum() / 2
        return float(misfit + weight[0] * squared_length(gradient(image)).sqrt().sum())

    best = objective(state.complex_image[0])
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2):
        for _ in range(5):
            nudge = torch.randn(data.operator.domain_shape, dtype=torch.complex64, generator=generator)
            assert objective(state.complex_image[0] + size * nudge) > best
    for factor in (0.99, 1.01):
        assert objective(factor * state.complex_image[0]) > best
    # Duality: at the optimum the gradient of the data term pairs with the image to minus the penalty.
    image = state.complex_image[0]
    slope = inner(image, data.operator.adjoint(data.operator(image) - data.y)).squeeze()
    penalty = weight[0] * squared_length(gradient(image)).sqrt().sum()
    assert float(slope) == pytest.approx(-float(penalty), rel=0.02)


def test_splitting_leaves_inactive_items_alone() -> None:
    data = measurement()
    start = data.operator.adjoint(data.y).expand(2, -1, -1).contiguous()
    state = TVSplitting(data.operator.gram, start, data.operator.fourier_diagonal().values, start)
    state.run(3, torch.tensor([0.01, 0.01]), torch.tensor([True, False]))
    assert torch.equal(state.image[1], start[1])
    assert not torch.equal(state.image[0], start[0])


def test_refining_the_phase_finds_a_smooth_turn() -> None:
    data = measurement()
    assert data.target is not None
    magnitude = data.target.abs()[None]
    true = torch.where(magnitude > 0, data.target / magnitude.clamp_min(1e-9), torch.ones(()))
    rows = torch.linspace(-1, 1, 32)[:, None]
    wrong = true * torch.polar(torch.ones(()), 0.25 * torch.cos(torch.pi * rows))
    weights = torch.tensor([NOISE**2])
    rotation = wrong
    for _ in range(3):
        rotation = refine_rotation(
            data.operator.gram,
            data.operator.gram(data.target)[None],
            magnitude,
            rotation,
            data.operator.fourier_diagonal().values,
            stiffness=weights / 0.1**2,
            bending=weights / 1e-2**2,
            iterations=5,
        )

    def error(candidate: Tensor) -> float:
        return float((magnitude * (candidate - true)).norm())

    assert error(rotation) < 0.3 * error(wrong)
    torch.testing.assert_close(rotation.abs(), torch.ones_like(magnitude))


def test_smooth_rotation_follows_a_smooth_phase_and_ignores_empty_images() -> None:
    rows = torch.linspace(-1, 1, 64)[:, None].expand(64, 64)
    image = torch.polar(torch.ones(64, 64), 0.5 * torch.cos(torch.pi * rows))
    assert float((smooth_rotation(image, 2.0) - image).abs().max()) < 0.1
    assert bool((smooth_rotation(torch.zeros(8, 8, dtype=torch.complex64), 2.0) == 1).all())


def test_a_phase_that_is_not_smooth_is_carried_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    magnitude = torch.rand(2, 16, 16, generator=generator) + 0.5
    wild = torch.polar(torch.ones(2, 16, 16), 3 * torch.randn(2, 16, 16, generator=generator))
    smooth_one = torch.ones_like(wild)
    start = PhasedImage(
        torch.stack([magnitude[0] * smooth_one[0], magnitude[1] * wild[1]]), magnitude, smooth_one
    )
    phase = CarriedPhase.of(start, 4.0)
    assert phase.smooth.tolist() == [True, False]
    assert torch.allclose(phase.along(start.image), magnitude, atol=1e-6)
    turned = phase.refined(start.image * torch.polar(torch.tensor(1.0), torch.tensor(0.2)))
    assert torch.equal(turned.rotation[1], phase.rotation[1]), "single pixels would copy their noise"
    assert torch.allclose(turned.rotation[0].angle(), torch.full((16, 16), 0.2), atol=1e-4)

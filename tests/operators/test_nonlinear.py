"""Non-linear operators: derivatives against differences, homogeneity, and projection on magnitudes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import FourierMagnitude, LinearOperator, NonlinearOperator, Saturation

OPERATORS: dict[str, Callable[[], NonlinearOperator]] = {
    "magnitude": lambda: FourierMagnitude((8, 12)),
    "magnitude-odd": lambda: FourierMagnitude((9, 7), 3.0),
    "magnitude-unpadded": lambda: FourierMagnitude((6, 5), 0.0),
    "saturation": lambda: Saturation((8, 9)),
    "saturation-vector": lambda: Saturation((30,), gain=0.7, limit=0.5),
}


@pytest.fixture(params=sorted(OPERATORS))
def operator(request: pytest.FixtureRequest) -> NonlinearOperator:
    return OPERATORS[request.param]()


def _random(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_jvp_is_the_central_difference(operator: NonlinearOperator) -> None:
    x, v = _random(3, *operator.domain_shape), _random(3, *operator.domain_shape, seed=6)
    step = 1e-6
    difference = (operator(x + step * v) - operator(x - step * v)) / (2 * step)
    tangent = operator.jvp(x, v)
    assert float(tangent.abs().max()) > 0.1
    assert torch.allclose(tangent, difference, atol=1e-6)


def test_vjp_is_the_adjoint_of_jvp_and_the_gradient(operator: NonlinearOperator) -> None:
    x, v = _random(3, *operator.domain_shape), _random(3, *operator.domain_shape, seed=6)
    u = _random(3, *operator.range_shape, seed=7)
    pulled = operator.vjp(x, u)
    assert float((operator.jvp(x, v) * u).sum()) == pytest.approx(float((v * pulled).sum()), rel=1e-12)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(operator(x), x, u)
    assert torch.allclose(gradient, pulled, atol=1e-14)


def test_lipschitz_bounds_the_gain_and_is_reached(operator: NonlinearOperator) -> None:
    x, v = 1e-3 * _random(64, *operator.domain_shape), 1e-3 * _random(64, *operator.domain_shape, seed=6)
    size = tuple(range(1, x.ndim))

    def norm(difference: Tensor) -> Tensor:
        return difference.square().sum(size).sqrt()

    assert bool((norm(operator(x) - operator(v)) <= operator.lipschitz * norm(x - v) * (1 + 1e-12)).all())
    assert float((norm(operator(2 * x) - operator(x)) / norm(x)).max()) == pytest.approx(operator.lipschitz)


def test_derivatives_broadcast_batches_and_promote_precision(operator: NonlinearOperator) -> None:
    x = _random(*operator.domain_shape, dtype=torch.float32)
    v, u = _random(2, 3, *operator.domain_shape, seed=6), _random(2, 3, *operator.range_shape, seed=7)
    assert torch.allclose(operator.jvp(x, v)[1, 2], operator.jvp(x.double(), v[1, 2]), atol=1e-14)
    assert torch.allclose(operator.vjp(x, u)[1, 2], operator.vjp(x.double(), u[1, 2]), atol=1e-14)
    assert torch.allclose(operator.jvp(v, x)[1, 2], operator.jvp(v[1, 2], x.double()), atol=1e-14)
    assert operator.jvp(x, v.float()).dtype == operator(x).dtype == torch.float32


def test_batches_are_independent_and_may_be_empty(operator: NonlinearOperator) -> None:
    x = _random(2, 3, *operator.domain_shape)
    y = operator(x)
    assert y.shape == (2, 3, *operator.range_shape)
    assert torch.allclose(y[1, 2], operator(x[1, 2]), atol=1e-14)
    assert operator(x[:0]).shape == operator.jvp(x[:0], x[:0]).shape == y[:0].shape
    assert operator.vjp(x[:0], y[:0]).shape == x[:0].shape


def test_homogeneous_says_whether_scaling_commutes(operator: NonlinearOperator) -> None:
    x = _random(*operator.domain_shape)
    commutes = torch.allclose(operator(3.7 * x), 3.7 * operator(x), atol=1e-12)
    assert commutes == operator.homogeneous


def test_is_an_immutable_module_that_says_it_is_nonlinear(operator: NonlinearOperator) -> None:
    assert not isinstance(operator, LinearOperator)
    assert f"{operator.domain_shape} -> {operator.range_shape}, non-linear" in repr(operator)
    with pytest.raises(AttributeError, match="immutable"):
        operator.limit = 3.0  # type: ignore[assignment]
    x = _random(*operator.domain_shape)
    for twin in (pickle.loads(pickle.dumps(operator)), operator.to(torch.float64)):  # noqa: S301 - our own bytes
        assert torch.equal(twin(x), operator(x))


def test_wrong_input_is_one_typed_error(operator: NonlinearOperator) -> None:
    x = _random(*operator.domain_shape)
    y = operator(x)
    for call in (
        lambda: operator(x[..., 1:]),
        lambda: operator.jvp(x, x[..., 1:]),
        lambda: operator.vjp(x, y[..., 1:]),
        lambda: operator.vjp(x.expand(2, *x.shape), y.expand(3, *y.shape)),
    ):
        with pytest.raises(GeometryError):
            call()
    with pytest.raises(ConfigError):
        operator(x.to(torch.complex64))
    with pytest.raises(ConfigError):
        operator.vjp(x, y.to(torch.int64))


@pytest.mark.parametrize("shape", [(8, 12), (9, 7)])
def test_magnitudes_are_those_of_the_padded_transform(shape: tuple[int, int]) -> None:
    x = _random(2, *shape)
    operator = FourierMagnitude(shape)
    rows, columns = operator.padding
    padded = torch.zeros(2, *operator.range_shape, dtype=torch.float64)
    padded[:, rows : rows + shape[0], columns : columns + shape[1]] = x
    expected = torch.fft.fftshift(torch.fft.fft2(padded).abs(), dim=(-2, -1)) / math.sqrt(padded[0].numel())
    assert torch.allclose(operator(x), expected, atol=1e-13)


def test_padding_is_the_published_one() -> None:
    operator = FourierMagnitude((256, 128), 2.0)
    assert operator.padding == (64, 32)
    assert operator.range_shape == (384, 192)
    assert FourierMagnitude((256, 256), 0.0).range_shape == (256, 256)


def test_gradient_is_finite_at_zero_magnitude() -> None:
    operator = FourierMagnitude((8, 8))
    # An alternating image: away from zero, and yet with zeros in its spectrum.
    x = (-1.0) ** torch.arange(8) * torch.ones(8, 8)
    for image in (torch.zeros(8, 8), x):
        image = image.double().requires_grad_()
        y = operator(image)
        assert float(y.detach().min()) < 1e-12
        (gradient,) = torch.autograd.grad(y.sum(), image)
        assert bool(torch.isfinite(gradient).all())
        assert bool(torch.isfinite(operator.jvp(image.detach(), torch.ones(8, 8))).all())


def test_projection_keeps_an_image_that_fits_and_its_phase() -> None:
    operator = FourierMagnitude((9, 12))
    x = _random(2, 9, 12)
    assert torch.allclose(operator.project(x, operator(x)), x, atol=1e-13)
    # The phase is that of x alone, whatever its scale.
    assert torch.allclose(operator.project(0.2 * x, operator(x)), x, atol=1e-13)
    assert torch.allclose(operator.project(x[0], 3 * operator(x))[0], 3 * x[0], atol=1e-13)


def test_projection_without_padding_takes_on_the_magnitudes() -> None:
    operator = FourierMagnitude((8, 6), 0.0)
    x, y = _random(8, 6), operator(_random(8, 6, seed=8))
    assert torch.allclose(operator(operator.project(x, y)), y, atol=1e-13)


def test_projection_of_nothing_and_of_negative_magnitudes() -> None:
    operator = FourierMagnitude((6, 6), 0.0)
    x, nothing = _random(6, 6), torch.zeros(6, 6)
    # No phase is phase zero: all magnitudes 1 make an impulse at the origin.
    impulse = operator.project(nothing, torch.ones(6, 6))
    assert float(impulse[3, 3]) == pytest.approx(6.0, abs=1e-5)
    assert float(impulse.abs().sum()) == pytest.approx(6.0, abs=1e-4)
    assert float(operator.project(x, -operator(x)).abs().max()) < 1e-13
    assert operator.project(x[None][:0], operator(x)).shape == (0, 6, 6)
    with pytest.raises(GeometryError):
        operator.project(x, operator(x)[1:])


def test_saturation_amplifies_and_clips() -> None:
    x = torch.tensor([-3.0, -0.25, 0.0, 0.5, 0.6])
    assert torch.equal(Saturation((5,))(x), torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.0]))
    operator = Saturation((5,), gain=4.0, limit=2.0)
    assert torch.equal(operator(x), torch.tensor([-2.0, -1.0, 0.0, 2.0, 2.0]))
    assert torch.equal(operator.vjp(x, torch.ones(5)), torch.tensor([0.0, 4.0, 4.0, 4.0, 0.0]))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: FourierMagnitude((8, 8), -1.0), ConfigError, "oversampling"),
        (lambda: FourierMagnitude((8, 8), math.inf), ConfigError, "oversampling"),
        (lambda: FourierMagnitude((8,)), GeometryError, r"\(H, W\)"),
        (lambda: Saturation((8, 8), gain=0.0), ConfigError, "gain"),
        (lambda: Saturation((8, 8), limit=math.nan), ConfigError, "limit"),
        (lambda: Saturation(()), GeometryError, "axis"),
    ],
)
def test_bad_setting_is_one_typed_error(make: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()

"""Operators seen through statistical weights."""

import pytest
import torch

from tests.conformance.operators import OperatorCase, OperatorConformance, pytest_cases
from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import CartesianMRI, PerCoil, Scaled, Separable, birdcage_maps
from treg_med.operators.weighted import Weighted


def _weights(*shape: int) -> torch.Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 3
    return torch.where(drawn < 0.5, 0.0, drawn)


def _real() -> Separable:
    draw = torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Separable(draw[:, :6], draw[:5, :7])


def _complex() -> CartesianMRI:
    return CartesianMRI(torch.ones(6, 8), birdcage_maps(3, (6, 8)))


CASES = [
    OperatorCase("weighted-real", lambda: Weighted(_real(), _weights(9, 5))),
    OperatorCase("weighted-complex", lambda: Weighted(_complex(), _weights(3, 6, 8))),
    OperatorCase("weighted-gram", lambda: Weighted(_real(), _weights(9, 5)).gram),
    OperatorCase("weighted-and-scaled", lambda: Scaled(Weighted(_real(), _weights(9, 5)), 0.3)),
]


@pytest_cases(CASES)
class TestWeighted(OperatorConformance):
    """Weights change nothing of the contract."""


def test_gram_weighs_every_sample() -> None:
    operator, weights = _real().to(torch.float64), _weights(9, 5).double()
    x = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = operator.adjoint(weights * operator(x))
    whitened = Weighted(operator, weights)
    torch.testing.assert_close(whitened.gram(x), expected)
    torch.testing.assert_close(whitened.adjoint(whitened(x)), expected)


def test_the_unit_of_the_image_is_passed_on() -> None:
    class Projector(Separable):
        image_unit = "1/mm"

    projector = Projector(torch.ones(4, 3), torch.ones(5, 2))
    whitened = Weighted(projector, torch.ones(projector.range_shape))
    wrapped = [whitened, whitened.gram, 2 * projector, projector + projector, PerCoil(projector, 2)]
    assert {operator.image_unit for operator in wrapped} == {"1/mm"}
    assert not Weighted(_real(), _weights(9, 5)).image_unit


def test_bad_weights_are_refused() -> None:
    operator = _real()
    with pytest.raises(GeometryError, match=r"\(9, 5\).*\(5, 9\)"):
        Weighted(operator, torch.ones(5, 9))
    for bad in (-torch.ones(9, 5), torch.full((9, 5), torch.nan), torch.zeros(9, 5), torch.ones(9, 5) + 0j):
        with pytest.raises(ConfigError):
            Weighted(operator, bad)

"""CartesianMRI against the definition, in double precision, for every parity of the lengths."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import (
    CartesianMRI,
    SamplingMask,
    birdcage_maps,
    centered_fft2,
    centered_ifft2,
    random_mask,
)

SHAPES = [(8, 12), (6, 10), (7, 9), (5, 8), (10, 7), (1, 6), (64, 50)]
PATTERNS = ["points", "columns", "rows", "full", "corner"]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _pattern(kind: str, height: int, width: int) -> Tensor:
    mask = torch.rand(height, width, generator=_generator()) < 0.5
    mask[0, 0] = True
    if kind == "columns":
        return mask[:1].expand(height, width)
    if kind == "rows":
        return mask[:, :1].expand(height, width)
    if kind == "full":
        return torch.ones(height, width)
    if kind == "corner":
        return torch.zeros(height, width).index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(1.0))
    return mask


def _maps(coils: int, height: int, width: int) -> Tensor | None:
    if not coils:
        return None
    return torch.randn(coils, height, width, dtype=torch.complex128, generator=_generator())


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _naive_dft(n: int) -> Tensor:
    index = (torch.arange(n) - n // 2).double()
    return torch.polar(torch.full((n, n), n**-0.5).double(), -2 * torch.pi * torch.outer(index, index) / n)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_centered_transform_is_the_definition(height: int, width: int) -> None:
    x = torch.randn(height, width, dtype=torch.complex128, generator=_generator())
    expected = _naive_dft(height) @ x @ _naive_dft(width).T
    assert torch.allclose(centered_fft2(x), expected, atol=1e-12)
    assert torch.allclose(centered_ifft2(expected), x, atol=1e-12)


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("coils", [0, 1, 3])
@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.complex64, 5e-7), (torch.complex128, 1e-14)])
def test_equals_the_definition(
    height: int, width: int, coils: int, kind: str, dtype: torch.dtype, bound: float
) -> None:
    mask, maps = _pattern(kind, height, width), _maps(coils, height, width)
    operator = CartesianMRI(mask, maps)
    unit = torch.ones(1, height, width, dtype=torch.complex128) if maps is None else maps
    x = torch.randn(2, height, width, dtype=dtype, generator=_generator())
    y = torch.randn(2, max(1, coils), height, width, dtype=dtype, generator=_generator())
    forward = centered_fft2(unit * x.to(torch.complex128)[:, None]) * (mask != 0)
    adjoint = (unit.conj() * centered_ifft2(y.to(torch.complex128) * (mask != 0))).sum(1)
    normal = (unit.conj() * centered_ifft2(forward)).sum(1)
    for result, expected, data in (
        (operator(x), forward, x),
        (operator.adjoint(y), adjoint, y),
        (operator.gram(x), normal, x),
    ):
        assert result.dtype == dtype
        # A single sample is a sum that cancels: its rounding error scales with the data, not with itself.
        scale = _norm(data) if kind == "corner" else _norm(expected)
        assert _norm(result - expected) <= bound * scale


@pytest.mark.parametrize("kind", ["points", "columns", "rows"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_unsampled_entries_are_positive_zero(kind: str, dtype: torch.dtype) -> None:
    mask = _pattern(kind, 9, 14)
    x = torch.randn(2, 9, 14, dtype=dtype, generator=_generator())
    y = CartesianMRI(mask, _maps(2, 9, 14))(x)
    unsampled = torch.view_as_real(y[..., ~mask])
    assert bool((unsampled == 0).all())
    assert not bool(torch.signbit(unsampled).any())
    assert bool((y[..., mask] != 0).all())


def test_unsampled_data_do_not_reach_the_adjoint() -> None:
    mask = _pattern("points", 8, 9)
    operator = CartesianMRI(mask, _maps(2, 8, 9))
    y = torch.randn(2, 8, 9, dtype=torch.complex64, generator=_generator())
    assert torch.equal(operator.adjoint(y), operator.adjoint(y * mask))


def test_a_row_of_the_mask_stands_for_the_mask() -> None:
    maps = _maps(2, 6, 10)
    row = torch.tensor([1, 0, 0, 1, 1, 1, 0, 0, 0, 1])
    full = CartesianMRI(row.expand(6, 10), maps)
    x = torch.randn(6, 10, dtype=torch.complex64, generator=_generator())
    assert torch.equal(CartesianMRI(row, maps)(x), full(x))
    assert full.mask.shape == (6, 10)
    assert full.mask.dtype == torch.bool
    assert full.acceleration == pytest.approx(2.0)
    assert full.n_sampled == 30


def test_sampling_mask_object_is_taken() -> None:
    mask = random_mask((8, 10), 2, 0.2, generator=_generator())
    assert isinstance(mask, SamplingMask)
    assert CartesianMRI(mask).acceleration == pytest.approx(mask.acceleration)


def test_coil_axis_is_kept_without_maps() -> None:
    assert CartesianMRI(torch.ones(4, 6))(torch.ones(3, 4, 6)).shape == (3, 1, 4, 6)


def test_real_image_is_promoted_and_its_gradient_is_real() -> None:
    operator = CartesianMRI(_pattern("points", 6, 8))
    x = torch.ones(6, 8, requires_grad=True)
    (operator(x).abs() ** 2).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert torch.allclose(x.grad, 2 * operator.gram(torch.ones(6, 8)).real, atol=1e-6)


@pytest.mark.parametrize("coils", [0, 1])
def test_closed_form_prox_equals_conjugate_gradients(coils: int) -> None:
    mask = _pattern("points", 9, 8)
    maps = None
    if coils:
        angle = torch.rand(1, 9, 8, dtype=torch.float64, generator=_generator())
        maps = torch.polar(torch.ones_like(angle), angle)
    operator = CartesianMRI(mask, maps)
    x0 = torch.randn(2, 9, 8, dtype=torch.complex128, generator=_generator())
    y = torch.randn(2, 1, 9, 8, dtype=torch.complex128, generator=_generator())
    weight = torch.tensor([0.2, 5.0])
    general = super(CartesianMRI, operator).prox(x0, y, weight, max_iter=200, rtol=1e-13)
    assert torch.allclose(operator.prox(x0, y, weight), general, atol=1e-11)
    assert torch.allclose(operator.pinv(y, x0=x0), super(CartesianMRI, operator).pinv(y, x0=x0), atol=1e-11)
    assert operator.norm() == 1.0


def test_prox_broadcasts_one_centre_over_a_batch_of_data() -> None:
    operator = CartesianMRI(_pattern("points", 9, 8), _maps(2, 9, 8))
    y = torch.randn(3, 2, 9, 8, dtype=torch.complex64, generator=_generator())
    x0 = torch.zeros(9, 8)
    together = operator.prox(x0, y, 0.5)
    assert together.shape == (3, 9, 8)
    assert torch.allclose(together[1], operator.prox(x0, y[1], 0.5), atol=1e-5)


def test_norm_is_the_largest_singular_value() -> None:
    operator = CartesianMRI(_pattern("points", 7, 6), _maps(2, 7, 6))
    basis = torch.eye(42, dtype=torch.complex128).reshape(42, 7, 6)
    largest = float(torch.linalg.matrix_norm(operator(basis).flatten(1), ord=2))
    assert operator.norm() == pytest.approx(largest, rel=1e-2)


def test_later_changes_of_the_inputs_change_nothing() -> None:
    mask, maps = torch.ones(4, 4), birdcage_maps(2, (4, 4))
    operator = CartesianMRI(mask, maps)
    before = operator(torch.ones(4, 4))
    mask.zero_(), maps.zero_()
    assert torch.equal(operator(torch.ones(4, 4)), before)
    assert torch.allclose(operator(torch.ones(4, 4, dtype=torch.float64)).to(before.dtype), before, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_large_outputs_live_in_memory_that_behaves_as_any_other(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = CartesianMRI(_pattern("points", 8, 9), _maps(2, 8, 9))
    x = torch.randn(3, 8, 9, dtype=dtype, generator=_generator()).requires_grad_()
    expected = operator(x)
    monkeypatch.setattr("treg_med.operators.cartesian_mri._MMAP_BYTES", 0)
    y = operator(x)
    assert torch.equal(y, expected)
    assert y.dtype == dtype
    (gradient,) = torch.autograd.grad(y.mul(2).abs().square().sum(), x)
    assert torch.allclose(gradient, 8 * operator.gram(x.detach()), rtol=1e-4, atol=1e-5)
    assert torch.equal(pickle.loads(pickle.dumps(y.detach())), y.detach())  # noqa: S301 - our own bytes


def test_casting_returns_a_copy_and_leaves_the_operator_alone() -> None:
    operator = CartesianMRI(torch.ones(4, 6), birdcage_maps(2, (4, 6)))
    for twin in (operator.to(torch.float64), operator.gram.to(torch.float64).operator):
        assert twin.sensitivity_maps.dtype == torch.complex128
        assert twin.mask.dtype == torch.bool
        assert operator.sensitivity_maps is not None
        assert operator.sensitivity_maps.dtype == torch.complex64
    assert torch.equal(operator.to("cpu")(torch.ones(4, 6)), operator(torch.ones(4, 6)))


def test_pickle_leaves_caches_behind() -> None:
    operator = CartesianMRI(torch.ones(32, 32), birdcage_maps(4, (32, 32)))
    bare = len(pickle.dumps(operator))
    operator(torch.ones(32, 32))
    assert len(pickle.dumps(operator)) == bare


@pytest.mark.parametrize(
    ("mask", "maps", "error", "match"),
    [
        (torch.zeros(4, 6), None, GeometryError, "samples nothing"),
        (
            torch.ones(4, 6),
            torch.ones(2, 4, 5, dtype=torch.complex64),
            GeometryError,
            r"\(4, 6\).*\(2, 4, 5\)",
        ),
        (torch.ones(5), torch.ones(2, 4, 6, dtype=torch.complex64), GeometryError, r"\(5,\).*\(2, 4, 6\)"),
        (torch.ones(6), None, GeometryError, r"\(6,\)"),
        (torch.ones(2, 4, 6), None, GeometryError, r"\(2, 4, 6\)"),
        (torch.ones(4, 6), torch.ones(4, 6, dtype=torch.complex64), GeometryError, "coils"),
        (torch.ones(4, 6), torch.ones(2, 4, 6), ConfigError, "complex"),
        (torch.full((4, 6), 0.5), None, ConfigError, "0 and 1"),
        (torch.ones(4, 6), torch.full((2, 4, 6), complex("nan")), ConfigError, "NaN"),
    ],
)
def test_bad_input_is_one_typed_error(
    mask: Tensor, maps: Tensor | None, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        CartesianMRI(mask, maps)

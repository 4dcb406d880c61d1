"""Conjugate gradients on complex Hermitian systems against a dense solve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import conjugate_gradient


def _system(n: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, dtype=dtype, generator=generator)
    b = torch.randn(n, dtype=dtype, generator=generator)
    return a.mH @ a / n + 0.1 * torch.eye(n, dtype=dtype), b


def _transposed_inner_product_cg(matrix: Tensor, b: Tensor, iterations: int) -> Tensor:
    """The classic mistake: r^T r in place of r^H r."""
    x, r = torch.zeros_like(b), b
    p, rho = r, (r * r).sum()
    for _ in range(iterations):
        q = matrix @ p
        alpha = rho / (p * q).sum()
        x, r = x + alpha * p, r - alpha * q
        new = (r * r).sum()
        p, rho = r + new / rho * p, new
    return x


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
def test_equals_a_dense_solve(dtype: torch.dtype) -> None:
    matrix, b = _system(30, dtype=dtype)
    result = conjugate_gradient(lambda v: matrix @ v, b, max_iter=200, rtol=1e-12, event_ndim=1)
    assert torch.allclose(result.x, torch.linalg.solve(matrix, b), atol=1e-9)
    assert float(result.relative_residual) <= 1e-12
    true = torch.linalg.vector_norm(b - matrix @ result.x) / torch.linalg.vector_norm(b)
    assert float(true) <= 1e-10
    assert 0 < int(result.iterations) <= 60


def test_the_inner_product_must_be_hermitian() -> None:
    matrix, b = _system(30)
    exact = torch.linalg.solve(matrix, b)
    ours = conjugate_gradient(lambda v: matrix @ v, b, max_iter=45, rtol=0, event_ndim=1).x
    wrong = _transposed_inner_product_cg(matrix, b, 45)
    assert float(torch.linalg.vector_norm(ours - exact)) < 1e-9
    assert not float(torch.linalg.vector_norm(wrong - exact)) < 0.1 * float(torch.linalg.vector_norm(exact))


def test_items_of_a_batch_are_independent_and_stop_by_themselves() -> None:
    easy, b_easy = torch.eye(12, dtype=torch.complex128), torch.ones(12, dtype=torch.complex128)
    hard, b_hard = _system(12)
    matrices, rhs = torch.stack([easy, hard, hard]), torch.stack([b_easy, b_hard, 0 * b_hard])

    def apply(v: Tensor) -> Tensor:
        return (matrices @ v[..., None])[..., 0]

    together = conjugate_gradient(apply, rhs, max_iter=100, rtol=1e-10, event_ndim=1)
    assert together.iterations.tolist()[0] == 1
    assert together.iterations.tolist()[2] == 0
    for item in range(3):
        alone = conjugate_gradient(
            lambda v, m=matrices[item]: m @ v, rhs[item], max_iter=100, rtol=1e-10, event_ndim=1
        )
        assert int(alone.iterations) == int(together.iterations[item])
        assert torch.allclose(alone.x, together.x[item], atol=1e-12)
    assert bool((together.x[2] == 0).all())


def test_shape_of_the_batch_is_kept() -> None:
    rhs = torch.ones(2, 3, 4, 5, dtype=torch.complex64)
    result = conjugate_gradient(lambda v: 2 * v, rhs)
    assert result.x.shape == rhs.shape
    assert result.iterations.shape == result.relative_residual.shape == (2, 3)
    assert torch.allclose(result.x, rhs / 2)


def test_a_good_start_saves_iterations() -> None:
    matrix, b = _system(25)
    exact = torch.linalg.solve(matrix, b)
    started = conjugate_gradient(lambda v: matrix @ v, b, x0=exact, rtol=1e-8, event_ndim=1)
    assert int(started.iterations) == 0
    assert torch.equal(started.x, exact)


def test_iteration_limit_is_kept_and_reported() -> None:
    matrix, b = _system(40)
    result = conjugate_gradient(lambda v: matrix @ v, b, max_iter=3, rtol=1e-12, event_ndim=1)
    assert int(result.iterations) == 3
    true = torch.linalg.vector_norm(b - matrix @ result.x) / torch.linalg.vector_norm(b)
    assert float(result.relative_residual) == pytest.approx(float(true), rel=1e-6)


def test_semidefinite_system_stops_at_its_null_space() -> None:
    diagonal = torch.tensor([1.0, 2.0, 0.0])
    result = conjugate_gradient(lambda v: diagonal * v, torch.tensor([1.0, 1.0, 0.0]), event_ndim=1)
    assert torch.allclose(result.x, torch.tensor([1.0, 0.5, 0.0]))


def test_gradient_flows_through_the_solution() -> None:
    matrix, b = _system(6)
    b.requires_grad_()
    x = conjugate_gradient(lambda v: matrix @ v, b, max_iter=50, rtol=1e-12, event_ndim=1).x
    (gradient,) = torch.autograd.grad(x.abs().square().sum(), b)
    expected = 2 * torch.linalg.solve(matrix, torch.linalg.solve(matrix, b.detach()))
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_bad_input_is_one_typed_error() -> None:
    rhs = torch.ones(3, 3)
    with pytest.raises(NumericsError, match="not finite"):
        conjugate_gradient(lambda v: v, rhs * float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        conjugate_gradient(lambda v: v * float("inf"), rhs)
    with pytest.raises(ConfigError):
        conjugate_gradient(lambda v: v, rhs, max_iter=-1)
    with pytest.raises(GeometryError):
        conjugate_gradient(lambda v: v, rhs, x0=torch.ones(2, 2))
    with pytest.raises(GeometryError):
        conjugate_gradient(lambda v: v, torch.ones(3))

"""The public check must catch what it exists to catch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from treg_med.errors import NumericsError
from treg_med.operators import CartesianMRI, LinearOperator, birdcage_maps, check_operator, random_mask


class MatrixOperator(LinearOperator):
    """Two matrices that claim to be each other's adjoint."""

    def __init__(self, forward: Tensor, adjoint: Tensor) -> None:
        super().__init__((forward.shape[1],), (forward.shape[0],), is_complex=forward.is_complex())
        self.register_buffer("a", forward)
        self.register_buffer("b", adjoint)

    def _forward(self, x: Tensor) -> Tensor:
        return (self.a.to(x.dtype) @ x[..., None])[..., 0]

    def _adjoint(self, y: Tensor) -> Tensor:
        return (self.b.to(y.dtype) @ y[..., None])[..., 0]


def _shear_matrices(n: int = 16) -> tuple[Tensor, Tensor]:
    """Linear shear and a slightly smoothed 'adjoint': off by percents, yet equal on constant vectors."""
    index = torch.arange(n * n)
    row, column = index // n, index % n
    position = column + 0.3 * row.double()
    low = position.floor().long().clamp(0, n - 2)
    weight = (position - low).clamp(0, 1)
    forward = torch.zeros(n * n, n * n, dtype=torch.float64)
    forward[index, row * n + low] = 1 - weight
    forward[index, row * n + low + 1] = weight
    smooth = 0.5 * torch.eye(n * n, dtype=torch.float64) + 0.25 * (
        torch.eye(n * n, dtype=torch.float64).roll(1, 0) + torch.eye(n * n, dtype=torch.float64).roll(-1, 0)
    )
    return forward, 0.9 * forward.T + 0.1 * smooth @ forward.T


def _cartesian() -> CartesianMRI:
    generator = torch.Generator().manual_seed(0)
    return CartesianMRI(random_mask((12, 14), 2, 0.2, generator=generator), birdcage_maps(3, (12, 14)))


def _spoiled(change: Callable[[CartesianMRI, Tensor], Tensor], where: str) -> CartesianMRI:
    base = _cartesian()
    original = getattr(CartesianMRI, where)
    kind = type("Spoiled", (CartesianMRI,), {where: lambda self, t: change(self, original(self, t))})
    return kind(base.mask, base.sensitivity_maps)


def test_correct_operator_passes_and_the_report_reads_well() -> None:
    report = check_operator(_cartesian(), raise_on_failure=True)
    assert report.passed
    assert not report.failures
    assert "(12, 14) -> (3, 12, 14)" in str(report)
    assert report["adjoint (dense)[complex64]"].value <= 5e-6
    assert report["adjoint (dense)[complex128]"].value <= 1e-12
    with pytest.raises(KeyError):
        report["no such check"]


@pytest.mark.parametrize("error", [1e-5, 1e-2])
def test_slightly_scaled_adjoint_is_caught(error: float) -> None:
    operator = _spoiled(lambda _, x: x * (1 + error), "_adjoint")
    report = check_operator(operator)
    assert not report["adjoint (dense)[complex64]"].passed
    assert report["adjoint (dense)[complex128]"].value == pytest.approx(error, rel=1e-3)
    with pytest.raises(NumericsError, match="adjoint"):
        check_operator(operator, raise_on_failure=True)


def test_unmatched_pair_that_passes_a_dot_product_of_smooth_vectors_is_caught() -> None:
    forward, almost = _shear_matrices()
    operator = MatrixOperator(forward, almost)
    ones = torch.ones(operator.domain_shape, dtype=torch.float64)
    left, right = float(operator(ones) @ ones), float(ones @ operator.adjoint(ones))
    assert abs(left - right) < 1e-9 * abs(left)
    report = check_operator(operator)
    assert report["adjoint (dense)[float32]"].value > 1e-2
    assert not report["adjoint (dense)[float64]"].passed
    assert check_operator(MatrixOperator(forward, forward.T)).passed


def test_unmatched_pair_too_large_for_the_dense_test_is_caught_by_white_probes() -> None:
    forward, almost = _shear_matrices()
    dense = check_operator(MatrixOperator(forward, almost))["adjoint (dense)[float64]"].value
    report = check_operator(MatrixOperator(forward, almost), max_dense_entries=1)
    probed = report["adjoint (white probes)[float64]"]
    assert not probed.passed
    assert 0.3 * dense < probed.value < 3 * dense
    assert not any("dense" in check.name for check in report.checks)
    small = check_operator(
        MatrixOperator(forward, forward.T),
        make_small=lambda: MatrixOperator(forward, almost),
        max_dense_entries=1,
    )
    assert not small["adjoint (dense)[float64]"].passed
    assert small["adjoint (white probes)[float64]"].passed


@pytest.mark.parametrize(
    ("change", "where", "check"),
    [
        (lambda op, y: y + 1e-3, "_forward", "linearity"),
        (lambda op, x: x.conj().resolve_conj(), "_adjoint", "adjoint (dense)"),
        (lambda op, x: x * 1.0001, "_normal", "gram"),
        (lambda op, y: y.to(torch.complex64), "_forward", "dtype"),
        (lambda op, x: x + x.mean(0) if x.ndim > 2 else x, "_adjoint", "batch"),
    ],
)
def test_other_faults_are_named(
    change: Callable[[CartesianMRI, Tensor], Tensor], where: str, check: str
) -> None:
    report = check_operator(_spoiled(change, where))
    assert f"{check}[complex128]" in [failure.name for failure in report.failures]


def test_operator_that_writes_into_its_input_is_named() -> None:
    base = _cartesian()

    class InPlace(CartesianMRI):
        def _forward(self, x: Tensor) -> Tensor:
            y = super()._forward(x)
            x.mul_(2)
            return y

    report = check_operator(InPlace(base.mask, base.sensitivity_maps))
    assert "input untouched[complex64]" in [failure.name for failure in report.failures]


def test_a_crash_is_a_finding_and_raises_nothing() -> None:
    class Unfinished(LinearOperator):
        def __init__(self) -> None:
            super().__init__((3,), (3,), is_complex=False)

    report = check_operator(Unfinished())
    assert not report.passed
    assert "NotImplementedError" in str(report)


def test_unpicklable_operator_is_named() -> None:
    class Local(LinearOperator):
        def __init__(self) -> None:
            super().__init__((3,), (3,), is_complex=False)

        def _forward(self, x: Tensor) -> Tensor:
            return 2 * x

        _adjoint = _forward

    assert {failure.name for failure in check_operator(Local()).failures} == {
        "pickle[float32]",
        "pickle[float64]",
    }


@pytest.mark.parametrize(
    ("name", "answer", "finding"),
    [
        ("norm", lambda self, **_: 0.0, "norm above zero"),
        ("norm", lambda self, **_: 0.1, "norm above zero"),
        ("start", lambda self, y: y, "answers"),
        ("facts", lambda self: {"coils": float("nan")}, "answers"),
        ("noise_std", lambda self, y, weights=None: y.abs(), "answers"),
        ("n_measured", lambda self, weights=None: 10**6, "answers"),
    ],
)
def test_wrong_answers_are_found(name: str, answer: Callable[..., object], finding: str) -> None:
    base = _cartesian()
    report = check_operator(type("Wrong", (CartesianMRI,), {name: answer})(base.mask, base.sensitivity_maps))
    # A class that was made here cannot be pickled.
    assert {check.name.split("[")[0] for check in report.failures} == {finding, "pickle"}


def test_the_old_names_of_the_two_methods_work_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="_matvec is now called _forward"):

        class Doubled(LinearOperator):
            def _matvec(self, x: Tensor) -> Tensor:
                return 2 * x

            def _rmatvec(self, y: Tensor) -> Tensor:
                return 2 * y

    doubled = Doubled((3, 4), (3, 4), is_complex=False)
    x = torch.rand(3, 4)
    assert torch.equal(doubled(x), 2 * x) and torch.equal(doubled.adjoint(x), 2 * x)

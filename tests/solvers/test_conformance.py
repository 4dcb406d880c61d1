"""Every registered solver passes the battery."""

from collections.abc import Callable

import pytest

from tests.conformance.solvers import CHECKS, SOLVER_CASES, SolverCase
from treg_med.solvers import available_solvers


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", SOLVER_CASES, ids=lambda case: case.id)
def test_solver(case: SolverCase, check: Callable[[SolverCase], None]) -> None:
    check(case)


def test_every_solver_has_a_case() -> None:
    assert set(available_solvers()) == {case.name for case in SOLVER_CASES}

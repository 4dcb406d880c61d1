"""Every registered solver passes the battery."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conformance.solvers import CHECKS, SOLVER_CASES, SolverCase, measurement
from treg_med.data.records import Reconstruction
from treg_med.priors import LatentPrior
from treg_med.solvers import available_solvers, get_solver


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", SOLVER_CASES, ids=lambda case: case.id)
def test_solver(case: SolverCase, check: Callable[[SolverCase], None]) -> None:
    check(case)


def test_every_solver_has_a_case() -> None:
    assert set(available_solvers()) == {case.name for case in SOLVER_CASES}


@pytest.mark.parametrize("name", [case.name for case in SOLVER_CASES if case.prior is not None])
def test_networks_run_under_autocast(name: str, tiny_prior_folder: Path) -> None:
    """A latent diffusion prior rounds to bf16; the physics stay in single precision and the data are fitted alike."""
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    solver = get_solver(name, steps=3)

    def run() -> Reconstruction:
        return solver(measurement(), prior=prior, text="brain", generator=torch.Generator().manual_seed(1))

    exact = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = run()
    assert rounded.image.dtype == torch.complex64
    assert rounded.residual == pytest.approx(exact.residual, abs=0.05)

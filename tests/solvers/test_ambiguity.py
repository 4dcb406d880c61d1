"""Where the data cannot decide, an exact sampler draws both answers in proportion, and a text decides."""

from __future__ import annotations

import pytest
import torch

from treg_med.codec import ImageCodec
from treg_med.operators import Inpainting
from treg_med.priors import GaussianMixturePrior
from treg_med.solvers import get_solver
from treg_med.solvers.latent_solver import LatentSolver
from treg_med.solvers.prior_space import PriorSpace
from treg_med.solvers.problem import Problem


def _share_on_the_left(name: str, text: str, seeds: int, settings: dict[str, object]) -> float:
    """Share of draws with the bright half on the left, where only the middle columns were measured."""
    left = torch.full((4, 6), -0.6, dtype=torch.float64)
    left[:, :2] = 0.6
    prior = GaussianMixturePrior(
        torch.stack([left, left.flip(1)]),
        {"": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0)},
        0.05**2 * torch.eye(24, dtype=torch.float64),
    )
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 2:4] = True
    forward = Inpainting(mask)
    y = forward((left + 1) / 2)[None]
    one = torch.ones(1, dtype=torch.float64)
    solver = get_solver(name, start="noise", end_noise=0.0, **settings)
    assert isinstance(solver, LatentSolver)
    found = 0
    for seed in range(seeds):
        problem = Problem(y, forward, 0.01 * one, one, prior, text, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            image = solver.sample(PriorSpace(problem, prior, ImageCodec((4, 6))))[0, 0]
        apart = image[:, :2].mean() - image[:, 4:].mean()
        assert float(apart.abs()) > 0.8, "a mixture of both answers is neither"
        found += bool(apart > 0)
    return found / seeds


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ldps", {"steps": 50}), ("dds", {"steps": 30}), ("diffpir", {"steps": 30}), ("resample", {"steps": 20})],
)
def test_a_text_decides_what_the_data_leave_open(name: str, settings: dict[str, object]) -> None:
    assert 0.15 < _share_on_the_left(name, "", 14, settings) < 0.85
    assert _share_on_the_left(name, "left", 3, settings) == 1.0
    assert _share_on_the_left(name, "right", 3, settings) == 0.0

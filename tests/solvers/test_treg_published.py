"""TReg as published, against an independent re-derivation of its loop on a tiny random pipeline."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.solvers.exact import data, posterior_statistics, space
from treg_med.codec import ImageCodec
from treg_med.operators import Inpainting, random_pixel_mask
from treg_med.priors import LatentPrior
from treg_med.solvers import get_solver
from treg_med.solvers.ddim import ddim_steps
from treg_med.solvers.prior_space import PriorSpace
from treg_med.solvers.problem import Problem
from treg_med.solvers.treg_published import PublishedTReg

SIZE = 32
NOISE = 0.01
PROMPT, NEGATIVE = "axial FLAIR brain MRI", "glioma"


def _problem(prior: LatentPrior) -> PriorSpace:
    generator = torch.Generator().manual_seed(1)
    forward = Inpainting(random_pixel_mask((SIZE, SIZE), 0.5, generator=generator))
    image = torch.rand(SIZE, SIZE, generator=generator)
    y = forward(image + NOISE / 2 * torch.randn(SIZE, SIZE, generator=generator))[None]
    one = torch.ones(1)
    problem = Problem(y, forward, NOISE / 2 * one, one, prior, PROMPT, torch.Generator().manual_seed(2))
    return PriorSpace(problem, prior, ImageCodec((SIZE, SIZE), prior.image_multiple))


def _rederived(prior: LatentPrior, problem: PriorSpace, steps: int, until: int, scale: float) -> Tensor:
    """The released loop, written from its equations with dense algebra where it has a closed form."""
    alphas = torch.cat([torch.ones(1), prior.alphas_cumprod])
    skip = len(prior.alphas_cumprod) // steps
    mask = problem.operator.mask
    measured = 2 * problem.problem.y[0] - 1
    text, null = prior.embed(PROMPT), prior.embed(NEGATIVE)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(1, 6, 8, 8, generator=generator)
    clean = z
    for s in range(steps):
        t = 1 + (steps - 1 - s) * skip
        b = alphas[t - skip] if t - skip >= 0 else prior.alphas_cumprod[0]
        noise_null, noise_text = (prior.predict(z, t, c).noise for c in (null, text))
        _, clean_null = prior.predict(z, t, null)
        _, clean_text = prior.predict(z, t, text)
        eps = noise_null + scale * (noise_text - noise_null)
        clean = clean_null + scale * (clean_text - clean_null)
        if s % 3 == 0 and s < until:
            x0 = prior.decode(clean)[0, 0]
            # (A^T A + lambda) x = A^T y + lambda x0 is diagonal for a mask.
            x = torch.where(mask, (measured + 1e-4 * x0) / (1 + 1e-4), x0)
            clean = b * prior.encode(x[None, None]) + (1 - b) * clean
            fresh = torch.randn(1, 6, 8, 8, generator=generator)
            z = b.sqrt() * clean + (1 - b) * eps + (1 - b).sqrt() * b.sqrt() * fresh
        else:
            z = b.sqrt() * clean + (1 - b).sqrt() * eps
    return prior.decode(clean)


@pytest.mark.parametrize("scale", [5.0, 1.0, 0.0])
def test_the_loop_equals_its_rederivation(tiny_prior_folder: Path, scale: float) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    solver = PublishedTReg(steps=20, guidance_scale=scale, negative_prompt=NEGATIVE, negation_steps=0)
    with torch.no_grad():
        ours = solver.sample(_problem(prior))
        expected = _rederived(prior, _problem(prior), 20, 17, scale)
    assert float((ours - expected).abs().max()) < 1e-3 * float(expected.abs().max())


def test_the_constants_are_those_of_the_publication() -> None:
    solver = get_solver("treg", "paper")
    assert isinstance(solver, PublishedTReg)
    _, y = data(1)
    blank = space(y).blank_latent()
    steps = ddim_steps(space(y).prior, solver.steps, blank, shift=1)
    with_data = [s for s in steps if solver._has_data(s)]
    assert len(steps) == 200
    assert len(with_data) == 57
    assert int(with_data[-1].timestep[0]) == 156
    assert (solver.weight, solver.iterations, solver.guidance_scale) == (1e-4, 5, 5.0)
    assert (solver.negation_rate, solver.negation_steps) == (1e-3, 10)
    assert solver.final == "none"


def test_noise_mixed_into_a_data_step_keeps_its_variance() -> None:
    """(1 - a') eps + sqrt(a' (1 - a')) n has the variance 1 - a' of the level."""
    for b in (0.01, 0.3, 0.9):
        assert (1 - b) ** 2 + b * (1 - b) == pytest.approx(1 - b)


def test_without_data_steps_at_the_end_the_result_does_not_fit_and_a_last_step_mends_that() -> None:
    published = posterior_statistics(PublishedTReg(guidance_scale=1.0), batches=1)
    assert published.residual > 1.5
    to_the_end = posterior_statistics(PublishedTReg(guidance_scale=1.0, data_until=1.0), batches=1)
    assert to_the_end.residual < 0.7 * published.residual
    assert published.evaluations == 200


def test_gradient_steps_serve_where_there_is_no_data_step() -> None:
    drawn = posterior_statistics(PublishedTReg.from_preset("paper-gradient", guidance_scale=1.0), batches=1)
    assert drawn.to_mean < 0.9
    assert drawn.residual < 1.0


def test_a_prior_without_scorer_says_that_there_was_no_negation() -> None:
    _, y = data(1)
    problem = space(y)
    with torch.no_grad():
        PublishedTReg(steps=3).sample(problem)
    assert any("no adaptive negation" in message for message in problem.problem.warnings)


class _Scorer:
    """Features of the width of the Gaussian prior's condition, whatever the image."""

    def __init__(self, width: int) -> None:
        self.direction = torch.linspace(-1, 1, width, dtype=torch.float32) / math.sqrt(width)

    def image_features(self, image: Tensor) -> Tensor:
        return self.direction.expand(len(image), -1)

    def text_features(self, states: Tensor, text: str) -> Tensor:
        return torch.nn.functional.normalize(states.mean(1), dim=-1)


def test_a_scorer_moves_the_negative_condition_and_the_drift_is_recorded(
    tiny_prior_folder: Path,
) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    prior.scorer = _Scorer(256)
    problem = _problem(prior)
    with torch.no_grad():
        moved = PublishedTReg(steps=20, negation_rate=1e-2).sample(problem)
        plain = PublishedTReg(steps=20, negation_steps=0).sample(_problem(prior))
    drift = problem.problem.notes["negation_drift"]
    assert len(drift) == 6
    assert drift == sorted(drift)
    assert not torch.equal(moved, plain)

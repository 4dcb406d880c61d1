"""Solvers against the closed-form posterior of a Gaussian prior: where their draws lie, in posterior deviations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from treg_med.codec import ImageCodec
from treg_med.operators import CartesianMRI, complex_gaussian_noise
from treg_med.priors import GaussianPrior
from treg_med.solvers.latent_solver import LatentSolver
from treg_med.solvers.prior_space import PriorSpace
from treg_med.solvers.problem import Problem

SIDE = 16
NOISE = 0.02
COUNT = 8


@dataclass(frozen=True)
class Posterior:
    """Statistics of draws: an exact sampler has `to_mean` 1 and `to_truth` sqrt(2), the exact mean 0 and 1.

    Attributes
    ----------
    to_mean, to_truth : float
        Root-mean-square distance to the posterior mean and to the truth, over the posterior deviation.
    residual : float
        Root-mean-square misfit in noise units.
    evaluations : int
        Of the denoiser, for one image.
    """

    to_mean: float
    to_truth: float
    residual: float
    evaluations: int


@cache
def gaussian_prior() -> GaussianPrior:
    """Smooth bright discs with a deviation of 0.12 in [-1, 1], correlated over four pixels."""
    index = torch.arange(SIDE, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(index, index, indexing="ij"), -1).reshape(-1, 2)
    covariance = 0.12**2 * torch.exp(-torch.cdist(points, points) / 4) + 1e-5 * torch.eye(
        SIDE**2, dtype=torch.float64
    )
    envelope = torch.exp(-((points - 7.5).square().sum(1) / 60)).reshape(SIDE, SIDE)
    return GaussianPrior({"": envelope * 1.2 - 1, "dark": envelope * 0.4 - 1}, covariance)


@cache
def operator() -> CartesianMRI:
    """Eight central columns of sixteen and three others."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[:, 4:12] = True
    mask[:, [0, 2, 14]] = True
    return CartesianMRI(mask)


@cache
def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``(count, H, W)`` of the prior and their noisy k-space."""
    prior, generator = gaussian_prior(), torch.Generator().manual_seed(seed)
    white = torch.randn(count, SIDE**2, generator=generator, dtype=torch.float64)
    images = prior.means[0] + (white @ torch.linalg.cholesky(prior.covariance).T).reshape(count, SIDE, SIDE)
    clean = operator()(((images + 1) / 2).to(torch.complex128))
    noise = complex_gaussian_noise(tuple(clean.shape), NOISE, generator, dtype=torch.complex128)
    return images, clean + noise * operator().mask


@cache
def _system() -> tuple[Tensor, Tensor, Tensor]:
    """Real matrix of the data of a prior image, gain of the posterior mean, and posterior deviation."""
    basis = torch.eye(SIDE**2, dtype=torch.complex128).reshape(-1, SIDE, SIDE)
    columns = operator()(basis)[:, 0][:, operator().mask].T
    matrix = torch.cat([columns.real, columns.imag]) / 2
    covariance = gaussian_prior().covariance
    spread = matrix @ covariance @ matrix.T + NOISE**2 / 2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = covariance @ matrix.T @ torch.linalg.inv(spread)
    return matrix, gain, (covariance - gain @ matrix @ covariance).diagonal().mean().sqrt()


def posterior_mean(y: Tensor) -> Tensor:
    """Posterior means ``(n, H, W)`` in [-1, 1] of k-space ``(n, 1, H, W)``."""
    matrix, gain, _ = _system()
    measured = y[:, 0][:, operator().mask]
    offset = torch.cat([measured.real, measured.imag], 1) - matrix.sum(1)
    mean = gaussian_prior().means[0].flatten()
    return (mean + (offset - mean @ matrix.T) @ gain.T).reshape(-1, SIDE, SIDE)


def posterior_shift(text: str) -> Tensor:
    """Change of the posterior mean ``(H, W)`` when `text` takes the place of the empty text, whatever the data."""
    prior = gaussian_prior()
    moved = (prior.embed(text)[0, 0] - prior.means[0]).flatten()
    matrix, gain, _ = _system()
    return (moved - gain @ (matrix @ moved)).reshape(SIDE, SIDE)


def least_residual(y: Tensor) -> float:
    """Root-mean-square misfit of the best-fitting images in noise units: below one, as images have fewer numbers."""
    problem = space(y)
    best = problem.data_step(posterior_mean(y)[:, None], 0.0, max_iter=400, rtol=1e-10)
    return float(problem.residual(best).square().mean().sqrt())


def space(y: Tensor, seed: int = 0, text: str = "", start: Tensor | None = None) -> PriorSpace:
    """The problem as a prior sees it, in units of the truth and with the true phase."""
    count = len(y)
    problem = Problem(
        y,
        operator(),
        torch.full((count,), NOISE, dtype=torch.float64),
        torch.ones(count, dtype=torch.float64),
        gaussian_prior(),
        text,
        torch.Generator().manual_seed(1000 + seed),
    )
    rotation = torch.ones(count, SIDE, SIDE, dtype=torch.complex128)
    codec = ImageCodec((SIDE, SIDE), 1, torch.ones(count, dtype=torch.float64))
    return PriorSpace(problem, gaussian_prior(), codec, rotation, start)


def posterior_statistics(solver: LatentSolver, *, batches: int = 3, count: int = COUNT) -> Posterior:
    """Draw for `batches` of `count` problems; the noise of the sampler is shared within a batch."""
    to_mean = to_truth = residual = 0.0
    for seed in range(batches):
        images, y = data(count, seed)
        problem = space(y, seed)
        with torch.no_grad():
            drawn = solver.sample(problem)
        to_mean += float((drawn[:, 0] - posterior_mean(y)).square().mean())
        to_truth += float((drawn[:, 0] - images).square().mean())
        residual += float(problem.residual(drawn).square().mean())
    deviation = float(_system()[2])
    return Posterior(
        (to_mean / batches) ** 0.5 / deviation,
        (to_truth / batches) ** 0.5 / deviation,
        (residual / batches) ** 0.5,
        problem.problem.nfe,
    )


def spread_ratio(solver: LatentSolver, *, draws: int, count: int = COUNT) -> float:
    """Deviation of draws of the same problems over the posterior deviation."""
    _, y = data(count)
    with torch.no_grad():
        drawn = torch.stack([solver.sample(space(y, 100 + seed)) for seed in range(draws)])
    return float(drawn.var(0).mean().sqrt() / _system()[2])

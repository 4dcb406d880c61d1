"""Conjugate gradients on the normal equations that regularise by their number of iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.solvers.problem import Problem, per_image

__all__ = ["stopped_early"]


def stopped_early(problem: Problem, stage: str, target: float, max_iterations: int) -> Tensor:
    """Return the first iterate ``(*batch, *domain)`` whose residual is at most `target` noise units, every item's own.

    Conjugate gradients from zero on A^H A x = A^H y; directions of small singular values, which hold the noise, come
    last. `stage` names the entries of the history.

    Hanke: Conjugate gradient type methods for ill-posed problems, Longman (1995).
    """
    gram, ndim = problem.linear.gram, len(problem.operator.domain_shape)
    remaining = problem.linear.adjoint(problem.y)
    image = torch.zeros_like(remaining)
    direction = remaining
    energy = _inner(remaining, remaining, ndim)
    active = torch.ones_like(problem.noise_std, dtype=torch.bool)
    for step in range(max_iterations):
        product = gram(direction)
        length = energy / _inner(direction, product, ndim).clamp_min(1e-30)
        length = torch.where(per_image(active, ndim), length, 0.0)
        image = image + length * direction
        remaining = remaining - length * product
        following = _inner(remaining, remaining, ndim)
        direction = remaining + following / energy.clamp_min(1e-30) * direction
        energy = following
        residual = problem.residual(image)
        problem.log(stage, step + 1, max_iterations, image=image, residual=residual)
        active = active & (residual > target)
        if not bool(active.any()):
            break
    return image


def _inner(left: Tensor, right: Tensor, ndim: int) -> Tensor:
    """Return the real part of the inner product of each item, with `ndim` singleton dimensions."""
    return per_image((left.conj() * right).real.sum(tuple(range(-ndim, 0))), ndim)

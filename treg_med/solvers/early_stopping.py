"""Conjugate gradients on the normal equations that regularise by their number of iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.solvers.base import Problem, per_image
from treg_med.solvers.differences import inner

__all__ = ["stopped_early"]


def stopped_early(problem: Problem, stage: str, target: float, max_iterations: int) -> Tensor:
    """Return the first iterate ``(*batch, H, W)`` whose residual is at most `target` noise units, every item's own.

    Conjugate gradients from zero on A^H A x = A^H y; directions of small singular values, which hold the noise, come
    last. `stage` names the entries of the history.

    Hanke: Conjugate gradient type methods for ill-posed problems, Longman (1995).
    """
    gram = problem.linear.gram
    remaining = problem.linear.adjoint(problem.y)
    image = torch.zeros_like(remaining)
    direction = remaining
    energy = inner(remaining, remaining)
    active = torch.ones_like(problem.noise_std, dtype=torch.bool)
    for step in range(max_iterations):
        product = gram(direction)
        length = energy / inner(direction, product).clamp_min(1e-30)
        length = torch.where(per_image(active), length, 0.0)
        image = image + length * direction
        remaining = remaining - length * product
        following = inner(remaining, remaining)
        direction = remaining + following / energy.clamp_min(1e-30) * direction
        energy = following
        residual = problem.residual(image)
        problem.log(stage, step + 1, max_iterations, image=image, residual=residual)
        active = active & (residual > target)
        if not bool(active.any()):
            break
    return image

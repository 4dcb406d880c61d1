"""How far a result lies from what the prior behind it was trained on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from treg_med.priors.domain_guard import DomainGuard
from treg_med.solvers.prior_space import codec_for
from treg_med.solvers.problem import Problem

__all__ = ["domain_distance"]


def domain_distance(problem: Problem, image: Tensor) -> float | None:
    """Return the distance of a result from the prior's domain, and warn of one above the limit.

    Parameters
    ----------
    problem : Problem
        With the prior that was used; its evaluations are counted.
    image : Tensor ``(*batch, H, W)``
        The result in working units.

    Returns
    -------
    float or None
        In units of the limit (see `priors.domain_guard.DomainGuard`), the largest of a batch; None where the prior's
        card knows no domain, or the image is empty.

    Raises
    ------
    FormatError
        If the card's entry cannot be read.
    """
    guard = DomainGuard.of(problem.prior)
    magnitude = image.abs() if image.is_complex() else image
    if guard is None or not bool((magnitude.flatten(-2).amax(-1) > 0).all()):
        return None
    codec = codec_for(problem, problem.prior, magnitude.abs())
    shown = codec.compress(replace(codec, multiple=1).encode(magnitude))
    problem.nfe += len(guard.levels)
    distance = float(guard.distance(problem.prior, shown).max())
    if not distance <= 1:
        # Without the number, so that the slices of a volume share one sentence.
        classical = "pwls-tv" if problem.attenuation else "tv"
        problem.warn(
            "the image lies outside what the prior was trained on, and what the prior added cannot be trusted; "
            f"use --solver {classical} instead"
        )
    return distance

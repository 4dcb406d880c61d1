"""How much of the circle a view stands for, and which rays of a fan are measured twice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["angular_steps", "redundancy_weights"]

# A gap this many times the median is not sampled more coarsely: it is a wedge that was not measured.
_WEDGE = 2.5


def angular_steps(angles: Tensor, period: float) -> Tensor:
    """Return the arc in rad that each view stands for, half the way to its neighbours on a circle of a period.

    A wedge that was not measured is not shared out among its neighbours. Parallel views have the period pi: a second
    half turn repeats the first one.
    """
    if len(angles) == 1:
        return angles.new_full((1,), period)
    place, order = torch.remainder(angles, period).sort()
    gaps = torch.cat([place.diff(), place[:1] + period - place[-1:]])
    largest = gaps.max()
    # Views that repeat one of the first half turn have no gap of their own.
    usual = gaps[gaps > 1e-3 * largest].median()
    gaps = torch.where((gaps == largest) & (largest > _WEDGE * usual), usual, gaps)
    steps = (gaps + gaps.roll(1)) / 2
    return torch.empty_like(steps).scatter_(0, order, steps)


def redundancy_weights(angles: Tensor, fan_angles: Tensor, arc: float) -> Tensor:
    r"""Return weights ``(views, bins)`` that count every line of a fan scan once.

    The ray (b, g) is measured again as (b + pi - 2 g, -g); the weights of the two sum to one. A full turn has 1/2
    everywhere. A scan of at least pi plus the fan has Parker's weights, with the overscan :math:`\Gamma = (arc - \pi) /
    2` in place of half the fan: at the start, in the middle and at the end, with b from the start,

    .. math:: w = \sin^2\frac{\pi b}{4 (\Gamma + g)},\quad 1,\quad \sin^2\frac{\pi (\pi + 2\Gamma - b)}{4 (\Gamma - g)}.

    Shorter scans share a line by windows that vanish smoothly at both ends, and a line that was measured once counts
    whole.

    Parameters
    ----------
    angles
        ``(views,)`` in rad, monotone.
    fan_angles
        ``(bins,)`` in rad.
    arc
        Measured arc in rad, one step beyond the last view.

    Parker, Med. Phys. 9 (1982) 254; Silver, Med. Phys. 27 (2000) 773; Noo et al., Phys. Med. Biol. 47 (2002) 2525.
    """
    widest = float(fan_angles.abs().max())
    step = arc / len(angles)
    if arc >= 2 * math.pi - 1.5 * step:
        return torch.full((len(angles), len(fan_angles)), 0.5, dtype=torch.float64)
    # The middle of a view's own step; scans that turn the other way are mirrored.
    turned = (angles - angles[0]).abs()[:, None] + step / 2
    gamma = (fan_angles if float(angles[-1]) >= float(angles[0]) else -fan_angles)[None, :]
    overscan = (arc - math.pi) / 2
    if overscan >= widest:
        rising = torch.sin(math.pi / 4 * turned / (overscan + gamma).clamp_min(1e-9)).square()
        falling = torch.sin(math.pi / 4 * (arc - turned) / (overscan - gamma).clamp_min(1e-9)).square()
        weights = torch.ones(len(angles), len(fan_angles), dtype=torch.float64)
        weights = torch.where(turned < 2 * (overscan + gamma), rising, weights)
        return torch.where(arc - turned < 2 * (overscan - gamma), falling, weights)

    def window(place: Tensor) -> Tensor:
        fade = min(0.1 * arc, math.radians(10.0))
        ends = torch.minimum(place, arc - place).clamp(0, fade)
        return torch.sin(math.pi / 2 * ends / fade).square()

    own, partners = window(turned), window(turned + math.pi - 2 * gamma) + window(turned - math.pi - 2 * gamma)
    return torch.where(partners > 0, own / (own + partners).clamp_min(1e-12), 1.0)

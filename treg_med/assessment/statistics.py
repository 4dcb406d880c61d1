"""Shares of wins with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Rate", "mean_and_error", "win"]

_Z95 = 1.959963984540054
# Below this relative difference two errors are the same number: nothing but rounding tells them apart.
_TIE = 1e-6


@dataclass(frozen=True)
class Rate:
    r"""Share of wins among `slices`, with the 95 % score interval.

    .. math:: \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}, \qquad z = 1.96

    With weights w, of sum one, p is the weighted share and :math:`n = 1 / \sum w^2`.

    Wilson: J. Am. Stat. Assoc. 22 (1927) 209. A tie counts one half. Slices are taken as independent.
    """

    wins: float
    slices: int
    low: float
    high: float

    @classmethod
    def of(cls, wins: Sequence[float], weights: Sequence[float] | None = None) -> Rate:
        """Rate of wins between 0 and 1, one per slice; of nothing it is unknown, 0 to 1."""
        count = len(wins)
        if count == 0:
            return cls(math.nan, 0, 0.0, 1.0)
        shares = [1 / count] * count if weights is None else list(weights)
        n = 1 / sum(w * w for w in shares)
        # Rounding may leave [0, 1], where the root would fail.
        p, z2 = min(max(sum(w * won for w, won in zip(shares, wins, strict=True)), 0.0), 1.0), _Z95**2
        centre, spread = p + z2 / (2 * n), _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        low, high = ((centre + sign * spread) / (1 + z2 / n) for sign in (-1, 1))
        return cls(p, sum(w > 0 for w in shares), max(0.0, low), min(1.0, high))

    @property
    def above_chance(self) -> bool:
        """Whether the lower end of the interval is above one half."""
        return self.slices > 0 and self.low > 0.5


def win(right: float, wrong: float) -> float:
    """One where the error of the right caption is smaller, zero where it is larger, a half where nothing differs."""
    if abs(right - wrong) <= _TIE * max(abs(right), abs(wrong)):
        return 0.5
    return float(right < wrong)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is NaN."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)

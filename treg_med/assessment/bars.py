"""What the project asks of its own prior; a report prints each bar with met or not met."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GAIN_BARS", "ORACLE_BAR", "ROUND_TRIP_BARS", "WORD_BARS", "Verdict", "judged"]

#: Share of slices on which the right word beats the wrong one.
WORD_BARS = {"contrast": 0.98, "plane": 0.95, "finding": 0.85, "side": 0.85, "territory": 0.75}
#: Mean and worst round trip in dB, data range the slice maximum.
ROUND_TRIP_BARS = {"mean": 40.0, "worst": 35.0}
#: Timestep -> denoising gain over tuned total variation in dB.
GAIN_BARS = {300: 2.0, 500: 4.0}
#: Gain of the oracle start over two-stage total variation in dB.
ORACLE_BAR = 2.0


@dataclass(frozen=True)
class Verdict:
    """One line of the summary: what was asked, what was measured, and whether that is enough."""

    name: str
    asked: str
    measured: str
    met: bool


def judged(name: str, value: float, least: float, unit: str, digits: int = 2) -> Verdict:
    """Compare a number with the least that is asked."""
    asked, measured = (f"{number:.{digits}f}{unit}" for number in (least, value))
    return Verdict(name, f"≥ {asked}", measured, value >= least)

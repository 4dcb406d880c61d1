"""Which views of a CT scan are used: all, a few spread over the arc, or those of a limited arc."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError
from treg_med.operators.ct_angles import angles_from_file

__all__ = ["ScannedViews", "ViewSelection"]

# Two views closer than this part of the step between views are one view measured twice.
_SAME_VIEW = 0.1


@dataclass(frozen=True)
class ViewSelection:
    """Leaving out views of a complete scan on purpose, the same ones in every slice.

    Parameters
    ----------
    views
        Number of views to keep, spread evenly over those of the arc; None keeps all.
    arc
        Length of the arc to keep, in degrees; None keeps all.
    start
        Where the arc begins, in degrees after the first view; an arc may run across the end of a full circle.

    Raises
    ------
    ConfigError
        For values that cannot be used.
    """

    views: int | None = None
    arc: float | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.views is not None and (
            isinstance(self.views, bool) or not isinstance(self.views, int) or self.views < 1
        ):
            raise ConfigError(f"expected a number of views >= 1, got {self.views!r}")
        if self.arc is not None and not (_is_number(self.arc) and 0 < self.arc <= 360):
            raise ConfigError(f"expected an arc above 0 and up to 360 degrees, got {self.arc!r}")
        if not (_is_number(self.start) and -360 <= self.start <= 360):
            raise ConfigError(f"expected a start between -360 and 360 degrees, got {self.start!r}")
        if self.arc is None and self.start != 0:
            raise ConfigError("expected an arc beside the start of one; pass arc=DEGREES too")

    def choose(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices that are kept and their angles, increasing along the arc.

        Parameters
        ----------
        angles
            (views,) in rad, in the order of the file.

        Raises
        ------
        ConfigError
            If the scan has fewer views than are asked for.
        """
        kept = torch.arange(angles.numel())
        values = angles.double()
        if self.arc is not None:
            turn = 2 * math.pi
            # Half a step of rounding would lose the first view of an arc that starts exactly on it.
            relative = (values - values[0] - math.radians(self.start) + 1e-9) % turn - 1e-9
            inside = relative < math.radians(self.arc) - 1e-9
            kept = kept[inside][relative[inside].argsort(stable=True)]
            values = values[0] + math.radians(self.start) + relative[kept]
        if self.views is not None:
            if self.views > kept.numel():
                raise ConfigError(
                    f"expected at most {kept.numel()} views, as many as were measured there, got views={self.views}"
                )
            picks = (torch.arange(self.views) * kept.numel()) // self.views
            kept, values = kept[picks], values[picks]
        if kept.numel() == 0:
            raise ConfigError(
                f"the arc of {self.arc} degrees from {self.start} degrees holds no view of this scan; choose another"
            )
        return kept, values

    def describe(self, kept: int, measured: int) -> list[dict[str, Any]]:
        """Return what was done, for header and provenance."""
        if self.views is None and self.arc is None:
            return []
        facts = {"views": kept, "of_views": measured, "arc_deg": self.arc, "start_deg": self.start}
        return [{"operation": "retrospective view selection", **facts}]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, eq=False)
class ScannedViews:
    """The views of a file: sorted, without a repeated one, and those that are used.

    Attributes
    ----------
    every
        Indices in the file of all views, in the order of their angles.
    every_angle
        Their angles in rad.
    picks
        Which of ``every`` are used.
    angles
        The angles of those, in rad.
    operations
        What was done, for header and provenance.
    warnings
        What of it is to be said beside every result: a unit that was not stated, views that were out of order.
    """

    every: Tensor
    every_angle: Tensor
    picks: Tensor
    angles: Tensor
    operations: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Tensor, unit: str | None, selection: ViewSelection) -> ScannedViews:
        """Read angles as a file has them.

        Views in another order are sorted. A last view a full circle after the first measures the same again and is
        left out, as half of all methods count it twice.

        Parameters
        ----------
        stored
            (views,) angles.
        unit
            "rad", "deg" or None to tell it from the values.
        selection
            Which views to use.

        Raises
        ------
        GeometryError, ConfigError
            For angles that are no scan, and a selection that they do not allow.
        """
        values = stored.double()
        order = _order(values)
        radians, note = angles_from_file(values if order is None else values[order], unit)
        operations: list[dict[str, Any]] = [{"operation": "read angles", "note": note}]
        warnings = [] if unit is not None else [f"{note}; state the unit if this is wrong"]
        if order is not None:
            operations.append({"operation": "sorted the views by angle"})
            warnings.append(
                "the views were not in the order of their angles and were sorted; if they were measured one after the "
                "other, the angles do not belong to these views"
            )
        unique = _without_repeated(radians)
        if len(unique) < len(radians):
            left_out = len(radians) - len(unique)
            what = "left out views that repeat the first after a full circle"
            operations.append({"operation": what, "views": left_out})
        picks, angles = selection.choose(radians[unique])
        operations += selection.describe(len(picks), len(unique))
        every = unique if order is None else order[unique]
        return cls(every, radians[unique], picks, angles, tuple(operations), tuple(warnings))


def _without_repeated(angles: Tensor) -> Tensor:
    """Return the indices of the views without those that close a full circle by measuring the first again."""
    kept = torch.arange(angles.numel())
    if angles.numel() < 3:
        return kept
    step = float(angles.diff().abs().median())
    gap = (angles - angles[0]).abs() - 2 * math.pi
    # Scans of several turns measure other rays there and keep them.
    repeated = gap.abs() < _SAME_VIEW * step
    return kept[~repeated] if bool(repeated[-1]) else kept


def _order(angles: Tensor) -> Tensor | None:
    """Return the order that sorts views which were measured in another one, None where they run one way already."""
    steps = angles.diff()
    if bool((steps > 0).all()) or bool((steps < 0).all()) or not bool(torch.isfinite(angles).all()):
        return None
    return angles.argsort(stable=True)

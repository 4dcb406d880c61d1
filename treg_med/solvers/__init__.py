"""Reconstruction methods behind one call signature: classical baselines and text-conditioned diffusion.

Importing this package does not import torch; the classes are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from treg_med.solvers.registry import available_presets, available_solvers, get_solver, register_solver, solver_class

if TYPE_CHECKING:
    from treg_med.settings import setting
    from treg_med.solvers.base import Solver
    from treg_med.solvers.cg_sense import CGSense
    from treg_med.solvers.problem import Problem, Progress
    from treg_med.solvers.total_variation import TotalVariation
    from treg_med.solvers.wavelet import Wavelet
    from treg_med.solvers.zero_filled import ZeroFilled

__all__ = [
    "CGSense",
    "Problem",
    "Progress",
    "Solver",
    "TotalVariation",
    "Wavelet",
    "ZeroFilled",
    "available_presets",
    "available_solvers",
    "get_solver",
    "register_solver",
    "setting",
    "solver_class",
]

_LAZY = {
    "CGSense": "treg_med.solvers.cg_sense",
    "Problem": "treg_med.solvers.problem",
    "Progress": "treg_med.solvers.problem",
    "Solver": "treg_med.solvers.base",
    "TotalVariation": "treg_med.solvers.total_variation",
    "Wavelet": "treg_med.solvers.wavelet",
    "ZeroFilled": "treg_med.solvers.zero_filled",
    "setting": "treg_med.settings",
}


def __getattr__(name: str) -> Any:
    """Import a class on first use."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)

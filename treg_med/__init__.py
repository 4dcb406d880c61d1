"""Medical image reconstruction with physics-based operators and a text-conditioned latent diffusion prior.

The names below are the public interface. They are imported on first use, so that ``import treg_med`` stays
fast and does not import torch. For research use only. Not a medical device; not for diagnosis or treatment.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from treg_med.errors import (
    ConfigError,
    FormatError,
    GeometryError,
    NumericsError,
    ResourceError,
    TregMedError,
    UnsafeFileError,
)

if TYPE_CHECKING:
    from treg_med import data, operators, priors, solvers
    from treg_med.codec import ImageCodec
    from treg_med.data import Geometry, Measurement, Reconstruction, VolumeWriter, open_scan, sample_path
    from treg_med.operators import LinearOperator, check_operator
    from treg_med.priors import LatentPrior
    from treg_med.reconstruction import reconstruct
    from treg_med.solvers import available_solvers, get_solver
    from treg_med.volume import Method, reconstruct_volume

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "FormatError",
    "Geometry",
    "GeometryError",
    "ImageCodec",
    "LatentPrior",
    "LinearOperator",
    "Measurement",
    "Method",
    "NumericsError",
    "Reconstruction",
    "ResourceError",
    "TregMedError",
    "UnsafeFileError",
    "VolumeWriter",
    "__version__",
    "available_solvers",
    "check_operator",
    "data",
    "get_solver",
    "open_scan",
    "operators",
    "priors",
    "reconstruct",
    "reconstruct_volume",
    "sample_path",
    "solvers",
]

_SUBPACKAGES = ("data", "operators", "priors", "solvers")
_LAZY = {
    "Geometry": "treg_med.data",
    "ImageCodec": "treg_med.codec",
    "LatentPrior": "treg_med.priors",
    "LinearOperator": "treg_med.operators",
    "Measurement": "treg_med.data",
    "Method": "treg_med.volume",
    "Reconstruction": "treg_med.data",
    "VolumeWriter": "treg_med.data",
    "available_solvers": "treg_med.solvers",
    "check_operator": "treg_med.operators",
    "get_solver": "treg_med.solvers",
    "open_scan": "treg_med.data",
    "reconstruct": "treg_med.reconstruction",
    "reconstruct_volume": "treg_med.volume",
    "sample_path": "treg_med.data",
}

if not TYPE_CHECKING:  # a type checker would take __getattr__ as leave for any name

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562)."""
        if name in _SUBPACKAGES:
            return import_module(f"treg_med.{name}")
        if name in _LAZY:
            value = getattr(import_module(_LAZY[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'treg_med' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)

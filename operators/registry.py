"""Operators by name: those of this package and those of plug-ins."""

from __future__ import annotations

from treg_med.errors import ConfigError
from treg_med.operators.blur import Blur
from treg_med.operators.cartesian_mri import CartesianMRI
from treg_med.operators.coil_maps import CoilMaps
from treg_med.operators.cone_beam import ConeBeamCT
from treg_med.operators.contract import Operator
from treg_med.operators.fan_beam import FanBeamCT
from treg_med.operators.inpainting import Inpainting
from treg_med.operators.nonlinear import FourierMagnitude, Saturation
from treg_med.operators.nufft import NonuniformFFT
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.operators.sampling import FourierTransform, Sampling
from treg_med.operators.separable import Separable
from treg_med.operators.super_resolution import SuperResolution
from treg_med.plugins import installed_plugins, plugin_named

__all__ = ["OWN_OPERATORS", "available_operators", "operator_class"]

_OWN: dict[str, type[Operator]] = {
    "cartesian-mri": CartesianMRI,
    "fourier": FourierTransform,
    "sampling": Sampling,
    "nonuniform-fft": NonuniformFFT,
    "coil-maps": CoilMaps,
    "parallel-beam": ParallelBeamCT,
    "fan-beam": FanBeamCT,
    "cone-beam": ConeBeamCT,
    "super-resolution": SuperResolution,
    "blur": Blur,
    "inpainting": Inpainting,
    "separable": Separable,
    "fourier-magnitude": FourierMagnitude,
    "saturation": Saturation,
}

OWN_OPERATORS = tuple(_OWN)


def available_operators() -> tuple[str, ...]:
    """Return the names of the operators of this package and of plug-ins."""
    return tuple(dict.fromkeys([*_OWN, *(plugin.name for plugin in installed_plugins("operators"))]))


def operator_class(name: str) -> type[Operator]:
    """Return the class of the operator called ``name``.

    Raises
    ------
    ConfigError
        If there is none, if two plug-ins have the name, or if the plug-in cannot be imported.
    """
    if name in _OWN:
        return _OWN[name]
    plugin = plugin_named("operators", name)
    if plugin is None:
        raise ConfigError(f"expected an operator among {', '.join(available_operators())}; got {name!r}")
    found: type[Operator] = plugin.load(Operator)
    return found

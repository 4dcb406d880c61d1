"""Names of the solvers and where they live; importing this file does not import torch.

A solver is registered by name with a ``"module:Class"`` address and is imported when it is first asked for. Other
packages add theirs by entry points (see `treg_med.plugins`).
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from treg_med.errors import ConfigError
from treg_med.plugins import installed_plugins, plugin_named

if TYPE_CHECKING:
    from treg_med.solvers.base import Solver

__all__ = ["OWN_SOLVERS", "available_presets", "available_solvers", "get_solver", "register_solver", "solver_class"]

_ADDRESSES: dict[str, str] = {
    "zero-filled": "treg_med.solvers.zero_filled:ZeroFilled",
    "cg-sense": "treg_med.solvers.cg_sense:CGSense",
    "tv": "treg_med.solvers.total_variation:TotalVariation",
    "wavelet": "treg_med.solvers.wavelet:Wavelet",
    "fbp": "treg_med.solvers.fbp:FilteredBackprojection",
    "sirt": "treg_med.solvers.sirt:SIRT",
    "cgls": "treg_med.solvers.cgls:CGLS",
    "pwls-tv": "treg_med.solvers.total_variation:PWLSTotalVariation",
    "treg": "treg_med.solvers.treg:TReg",
    "ldps": "treg_med.solvers.ldps:LDPS",
    "psld": "treg_med.solvers.psld:PSLD",
    "mpgd": "treg_med.solvers.mpgd:MPGD",
    "dds": "treg_med.solvers.dds:DDS",
    "diffpir": "treg_med.solvers.diffpir:DiffPIR",
    "resample": "treg_med.solvers.resample:ReSample",
    "projdiff": "treg_med.solvers.projdiff:ProjDiff",
    "p2l": "treg_med.solvers.p2l:P2L",
}

#: Names that plug-ins cannot take.
OWN_SOLVERS = tuple(_ADDRESSES)

# Presets that are another loop than the solver's own.
_PRESET_ADDRESSES: dict[tuple[str, str], str] = {
    ("treg", "paper"): "treg_med.solvers.treg_published:PublishedTReg",
    ("treg", "paper-gradient"): "treg_med.solvers.treg_published:PublishedTReg",
}


def available_solvers() -> tuple[str, ...]:
    """Return the names of the solvers: those of this package, registered ones, and those of plug-ins."""
    return tuple(dict.fromkeys([*_ADDRESSES, *(plugin.name for plugin in installed_plugins("solvers"))]))


def register_solver(name: str, address: str) -> None:
    """Add a solver under ``name``; ``address`` is ``"package.module:Class"``.

    Raises
    ------
    ConfigError
        If the name is taken or the address is not of that form.
    """
    if name in available_solvers():
        raise ConfigError(f"expected a new solver name, got {name!r}, which is taken; choose another name")
    module, _, attribute = address.partition(":")
    if not module or not attribute:
        raise ConfigError(f"expected an address 'package.module:Class', got {address!r}")
    _ADDRESSES[name] = address


def available_presets(name: str) -> tuple[str, ...]:
    """Return the presets of the solver called ``name``."""
    own = tuple(solver_class(name).presets)
    return own + tuple(preset for solver, preset in _PRESET_ADDRESSES if solver == name)


def solver_class(name: str, preset: str = "default") -> type[Solver]:
    """Return the class of the solver called ``name``, that which a preset asks for.

    A solver that is not registered can be given by its address, ``"package.module:Class"``.

    Raises
    ------
    ConfigError
        If no solver has that name, the message lists those that exist; if two plug-ins have it; or if nothing is at
        the address.
    """
    if name not in _ADDRESSES and ":" in name:
        return _at_address(name)
    if name not in _ADDRESSES:
        from treg_med.solvers.base import Solver

        if plugin := plugin_named("solvers", name):
            plugged: type[Solver] = plugin.load(Solver)
            return plugged
        known = ", ".join(available_solvers())
        close = difflib.get_close_matches(str(name), available_solvers(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"expected a solver among {known}; got {name!r}{hint}")
    module, _, attribute = _PRESET_ADDRESSES.get((name, preset), _ADDRESSES[name]).partition(":")
    cls: type[Solver] = getattr(import_module(module), attribute)
    return cls


def _at_address(address: str) -> type[Solver]:
    from treg_med.solvers.base import Solver

    module, _, attribute = address.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"expected a solver at {address!r}, 'package.module:Class', but {error}") from error
    if not (isinstance(found, type) and issubclass(found, Solver)):
        raise ConfigError(f"expected a subclass of Solver at {address!r}, got {found!r}")
    return found


def get_solver(name: str, preset: str = "default", **settings: Any) -> Solver:
    """Build the solver called ``name`` from a preset and named settings that override it.

    Parameters
    ----------
    name
        One of :func:`available_solvers`.
    preset
        One of the presets of that solver (``"default"`` always exists).
    **settings
        Fields of the solver's dataclass.

    Raises
    ------
    ConfigError
        For an unknown name, preset or setting, and for a value out of its range.
    """
    known = available_presets(name)
    if preset not in known:
        raise ConfigError(f"solver {name!r}: expected a preset among {', '.join(known)}; got {preset!r}")
    return solver_class(name, preset).from_preset(preset, **settings)

"""What other installed packages add: readers, solvers and operators, found by their entry points.

A package names them in its ``pyproject.toml``::

    [project.entry-points."treg_med.solvers"]
    my-solver = "my_package.solver:MySolver"

Every process, a worker of a run on another machine too, finds them by itself. Nothing is imported before it is needed,
and a plug-in that cannot be imported takes nothing else with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from treg_med.errors import ConfigError

__all__ = ["GROUPS", "Plugin", "installed_plugins", "plugin_named", "plugin_problems"]

#: What a plug-in may be, and the group of its entry point.
GROUPS = {kind: f"treg_med.{kind}" for kind in ("readers", "solvers", "operators")}


@dataclass(frozen=True)
class Plugin:
    """One entry point.

    Parameters
    ----------
    kind
        "readers", "solvers" or "operators".
    name
        Name under which it is asked for.
    address
        ``"package.module:Class"``.
    package
        Name and version of the package that brings it.
    """

    kind: str
    name: str
    address: str
    package: str

    def load(self, base: type) -> Any:
        """Import the class.

        Raises
        ------
        ConfigError
            If that fails, or it is no subclass of `base`.
        """
        module, _, attribute = self.address.partition(":")
        try:
            found: Any = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:  # noqa: BLE001 - a foreign package may raise anything, and must be named
            raise ConfigError(
                f"the plug-in {self.name!r} of {self.package} cannot be imported from {self.address!r} "
                f"({type(error).__name__}: {error}); repair or uninstall that package"
            ) from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(
                f"expected a subclass of {base.__name__} at {self.address!r}, the plug-in {self.name!r} of "
                f"{self.package}, got {found!r}"
            )
        return found


@cache
def installed_plugins(kind: str) -> tuple[Plugin, ...]:
    """Return the plug-ins of a kind, by name; looked for once in a process."""
    found = set()
    for entry in entry_points(group=GROUPS[kind]):
        package = "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
        found.add(Plugin(kind, entry.name, entry.value, package))
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.address)))


def plugin_named(kind: str, name: str) -> Plugin | None:
    """Return the plug-in of that name, None where there is none.

    Raises
    ------
    ConfigError
        If two packages bring one.
    """
    found = [plugin for plugin in installed_plugins(kind) if plugin.name == name]
    if len(found) > 1:
        both = " and ".join(f"{plugin.address!r} of {plugin.package}" for plugin in found)
        raise ConfigError(f"two plug-ins are called {name!r}, {both}; uninstall one of the packages")
    return found[0] if found else None


def plugin_problems(kind: str, base: type, *, own: tuple[str, ...] = ()) -> dict[str, str]:
    """Return what is wrong with plug-ins of a kind, by name; every one is imported."""
    problems = {}
    for name in dict.fromkeys(plugin.name for plugin in installed_plugins(kind)):
        try:
            plugin = plugin_named(kind, name)
            if plugin is not None and name in own:
                raise ConfigError(f"the plug-in {name!r} of {plugin.package} has a name that is taken; it is not used")
            if plugin is not None:
                plugin.load(base)
        except ConfigError as error:
            problems[name] = str(error)
    return problems

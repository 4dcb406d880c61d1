"""Reading a MONAI bundle's configuration as data: literals and references to literals, never an expression.

MONAI itself evaluates ``"$..."`` strings as Python and imports whatever ``_target_`` names. Here an expression where a
value is needed is an error, and a ``_target_`` is only compared with a list of names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from treg_med.errors import ConfigError, FormatError, UnsafeFileError
from treg_med.priors.layout import read_json

__all__ = ["BundleConfig", "is_bundle"]

# MONAI, MONAI Generative before it, and MONAI's short form without a module.
_NAMESPACE = re.compile(r"(?:(?:monai|generative)\.networks\.(?:nets|schedulers)(?:\.[a-z_]+)*\.)?\w+")
_DEPTH = 16


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a MONAI bundle."""
    return any((folder / "configs" / name).is_file() for name in ("metadata.json", "inference.json"))


class BundleConfig:
    """``configs/inference.json`` of a bundle.

    Parameters
    ----------
    content
        The parsed file.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    @classmethod
    def of(cls, folder: Path) -> BundleConfig:
        """Read the configuration of a bundle's folder.

        Raises
        ------
        FormatError
            If it is missing or no JSON.
        """
        path = folder / "configs" / "inference.json"
        if not path.is_file():
            raise FormatError(
                "expected the networks of the MONAI bundle in configs/inference.json, got no such file; "
                "write the bundle's inference configuration as JSON"
            )
        return cls(read_json(path))

    def definition(self, role: str, names: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        """Name and literal arguments of the one definition whose ``_target_`` is among the names.

        Parameters
        ----------
        role
            What the definition is, for messages.
        names
            Class name to "" where it is supported, else to why not.

        Raises
        ------
        ConfigError
            If there is none, more than one, or one that is not supported.
        UnsafeFileError
            If an argument is an expression.
        """
        found: list[tuple[str, dict[str, Any]]] = []
        targets = []
        for where, entry in self._definitions(self.content, ""):
            target = str(entry["_target_"])
            targets.append(target)
            name = target.rpartition(".")[2]
            if names.get(name):
                raise ConfigError(
                    f"expected {_supported(names)} for the {role} in configs/inference.json, got {target}: "
                    f"{names[name]}"
                )
            if name not in names or not _NAMESPACE.fullmatch(target):
                continue
            arguments = {k: self.literal(v, f"{where}::{k}") for k, v in entry.items() if not k.startswith("_")}
            if (name, arguments) not in found:
                found.append((name, arguments))
        if len(found) != 1:
            raise ConfigError(
                f"expected one {role} (MONAI's {_supported(names)}) among the definitions in configs/inference.json, "
                f"got {len(found)} among {', '.join(targets) or 'none'}; keep that of the prior only, other classes "
                "are never made"
            )
        return found[0]

    def scale_factor(self) -> Any:
        """Literal ``scale_factor`` of the bundle or its inferer; None where there is none or only an expression."""
        places = [self.content, *(entry for _, entry in self._definitions(self.content, ""))]
        for place in places:
            # Transforms have scale factors too.
            kind = str(place.get("_target_", "Inferer"))
            for key in ("scale_factor", "scaling_factor"):
                if key in place and kind.endswith(("Inferer", "Sampler")):
                    try:
                        return self.literal(place[key], key)
                    except UnsafeFileError:
                        continue
        return None

    def literal(self, value: Any, where: str, depth: int = 0) -> Any:
        """Return a value with its references to other literals followed.

        Raises
        ------
        UnsafeFileError
            If it would have to be evaluated or read from another file.
        FormatError
            If a reference leads nowhere or in a circle.
        """
        if depth > _DEPTH:
            raise FormatError(f"expected a value for {where} in configs/inference.json, got a circle of references")
        if isinstance(value, str) and value.startswith(("$", "%")):
            raise UnsafeFileError(
                f"expected a literal for {where} in configs/inference.json, got the expression {value!r}, which would "
                "have to be run; write its value there"
            )
        if isinstance(value, str) and value.startswith("@"):
            return self.literal(self._referenced(value[1:], where), where, depth + 1)
        if isinstance(value, list):
            return [self.literal(item, where, depth + 1) for item in value]
        if isinstance(value, dict):
            if "_target_" in value:
                raise UnsafeFileError(
                    f"expected a literal for {where} in configs/inference.json, got an object of "
                    f"{value['_target_']!r}, which would have to be made; write its value there"
                )
            return {key: self.literal(item, where, depth + 1) for key, item in value.items()}
        return value

    def _referenced(self, name: str, where: str) -> Any:
        place: Any = self.content
        for part in re.split(r"::|#", name):
            if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
                place = place[int(part)]
            elif isinstance(place, Mapping) and part in place:
                place = place[part]
            else:
                raise FormatError(
                    f"expected {where} in configs/inference.json to name an entry of it, got @{name}; write its value"
                )
        return place

    def _definitions(self, place: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if isinstance(place, Mapping):
            if "_target_" in place:
                yield where, place
            for key, value in place.items():
                yield from self._definitions(value, f"{where}::{key}" if where else key)
        elif isinstance(place, list):
            for index, value in enumerate(place):
                yield from self._definitions(value, f"{where}::{index}")


def _supported(names: Mapping[str, str]) -> str:
    return " or ".join(name for name, why in names.items() if not why)

"""``prior.json``: what a prior says about itself, and what its other files leave open."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treg_med.data.safe_hdf5 import sha256_of
from treg_med.errors import ConfigError, FormatError, ResourceError, UnsafeFileError

__all__ = ["PRIOR_CARD", "FolderOptions", "read_card", "value_range", "write_card"]

PRIOR_CARD = "prior.json"

_ROLES = ("vae", "unet", "scheduler", "text_encoder", "tokenizer", "scorer")


@dataclass(frozen=True)
class FolderOptions:
    """What a prior's own files may leave open: given by the caller, else by ``prior.json``.

    Parameters
    ----------
    subfolders
        Name of the folder (in a MONAI bundle: of the weight file) of a component, by its role.
    scaling_factor, shift_factor
        ``latent = (raw - shift) * scale``; None reads them from the autoencoder.
    condition_names
        Names of a condition vector's entries.
    image_range
        Values of background and of the brightest tissue that a MONAI autoencoder takes.
    """

    subfolders: Mapping[str, str] = field(default_factory=dict)
    scaling_factor: float | None = None
    shift_factor: float | None = None
    condition_names: tuple[str, ...] | None = None
    image_range: tuple[float, float] | None = None

    @classmethod
    def merged(
        cls,
        card: Mapping[str, Any],
        subfolders: Mapping[str, str] | None,
        scaling_factor: float | None,
        shift_factor: float | None,
        condition_names: Sequence[str] | None,
    ) -> FolderOptions:
        """Take the caller's values, else those of the card.

        Raises
        ------
        ConfigError
            If a value cannot be used.
        """
        folders = subfolders if subfolders is not None else card.get("subfolders", {})
        names = condition_names if condition_names is not None else card.get("condition_names")
        limits = card["image"].get("range") if isinstance(card.get("image"), dict) else None
        return cls(
            subfolders=_checked_folders(folders),
            scaling_factor=_number("scaling_factor", scaling_factor, card, positive=True),
            shift_factor=_number("shift_factor", shift_factor, card, positive=False),
            condition_names=_checked_names(names),
            image_range=value_range(limits),
        )


def value_range(limits: Any) -> tuple[float, float] | None:
    """Two rising finite numbers as a pair; None for anything else."""
    if not isinstance(limits, list | tuple) or len(limits) != 2:
        return None
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in limits) or limits[0] >= limits[1]:
        return None
    return float(limits[0]), float(limits[1])


def read_card(folder: Path) -> dict[str, Any]:
    """Content of ``prior.json`` after every checksum in it was verified; empty where there is no card.

    Raises
    ------
    FormatError
        If it is not JSON, or a checksum does not match.
    ResourceError
        If a file that it lists is missing.
    UnsafeFileError
        If it lists a file outside the folder.
    """
    path = folder / "prior.json"
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        sums = card.get("sha256", {}).items()
    except (OSError, ValueError, AttributeError) as error:
        raise FormatError(
            f"expected JSON in {path.name} of the prior, got an unreadable file ({error}); copy the prior again"
        ) from error
    for name, expected in sums:
        part = folder / name
        if not part.resolve().is_relative_to(folder.resolve()):
            raise UnsafeFileError(f"expected files inside the prior's folder in prior.json, got {name!r}")
        if not part.is_file():
            raise ResourceError(f"expected {name} in the prior's folder, as prior.json lists it; copy the prior again")
        if sha256_of(part) != expected:
            raise FormatError(f"expected the checksum of prior.json for {name}, got another one; copy the prior again")
    return dict(card)


def _checked_folders(folders: Any) -> dict[str, str]:
    if not isinstance(folders, Mapping) or not all(isinstance(v, str) for v in folders.values()):
        raise ConfigError(f"expected subfolders such as {{'unet': 'denoiser'}}, got {folders!r}")
    unknown = sorted(set(folders) - set(_ROLES))
    if unknown:
        raise ConfigError(f"expected subfolders of {', '.join(_ROLES)}, got {unknown[0]!r}; use one of these roles")
    return dict(folders)


def _checked_names(names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"expected condition_names such as ('sex', 'age'), got {names!r}; pass a tuple of names")
    return tuple(names)


def _number(name: str, given: Any, card: Mapping[str, Any], *, positive: bool) -> float | None:
    value = given if given is not None else card.get(name)
    if value is None:
        return None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or (positive and value <= 0):
        raise ConfigError(f"expected {name} to be a {'positive ' if positive else ''}finite number, got {value!r}")
    return float(value)


def write_card(folder: Path, card: dict[str, Any], name: str = PRIOR_CARD) -> None:
    """Put the checksum of every file of a folder on a card, and write it as the folder's last file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    card["sha256"] = {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}
    (folder / name).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")

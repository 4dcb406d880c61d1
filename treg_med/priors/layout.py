"""Which subfolder of a prior holds which component, by its name or by what its configuration says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treg_med.errors import ConfigError, FormatError, ResourceError, UnsafeFileError

__all__ = ["AUTOENCODERS", "DENOISERS", "SCORERS", "component_folder", "find_components", "read_json"]

AUTOENCODERS = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny", "VQModel", "NullSpaceAutoencoder")
DENOISERS = ("UNet2DConditionModel", "UNet2DModel", "WordMapUNet")
_TEXT_MODEL = re.compile(r"Text(Model|Encoder)|BertModel|BertFor|T5Encoder|RobertaModel")
_TEXT = ("text_encoder", "tokenizer")
_OPTIONAL = (*_TEXT, "scorer")
SCORERS = ("ImageTextScorer",)


def find_components(folder: Path, subfolders: Mapping[str, str]) -> dict[str, Path | None]:
    """Subfolder of every component by its role; None for one that a prior can do without.

    A folder named by the caller comes first, then the usual name (``vae``, ``unet``, ...), then the only folder whose
    configuration is of that kind.

    Raises
    ------
    ResourceError
        If a component is missing.
    ConfigError
        If several folders could be it.
    """
    roles = ("vae", "unet", "scheduler", *_OPTIONAL)
    found = {role: component_folder(folder, role, subfolders.get(role)) for role in roles}
    for role, part in found.items():
        if part is None and (role not in _OPTIONAL or _is_listed(folder, role)):
            raise _missing(folder, role)
    if (found["text_encoder"] is None) != (found["tokenizer"] is None):
        there, absent = _TEXT if found["tokenizer"] is None else reversed(_TEXT)
        raise ResourceError(
            f"expected the component {absent!r} beside {there!r} in the prior's folder, got none; copy it there, or "
            "take the other away for a prior without text"
        )
    return found


def component_folder(folder: Path, role: str, name: str | None = None) -> Path | None:
    """Folder of one component; None where there is none."""
    if name is not None:
        part = folder / name
        if not part.resolve().is_relative_to(folder.resolve()):
            raise UnsafeFileError(f"expected {role!r} inside the prior's folder, got {name!r}; name a subfolder of it")
        if not part.is_dir():
            raise ResourceError(f"expected the folder {name!r} for the component {role!r}, got none; check subfolders")
        return part
    if (folder / role).is_dir():
        return folder / role
    alike = [part for part in sorted(folder.iterdir()) if part.is_dir() and _role(part) == role]
    if len(alike) > 1:
        raise ConfigError(
            f"expected one folder for the component {role!r}, got {', '.join(part.name for part in alike)}; "
            f"pass subfolders={{{role!r}: {alike[0].name!r}}} or rename one to {role!r}"
        )
    return alike[0] if alike else None


def read_json(path: Path) -> dict[str, Any]:
    """Object in a JSON file.

    Raises
    ------
    FormatError
        If there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            f"expected JSON in {path.parent.name}/{path.name}, got an unreadable file ({error}); copy the prior again"
        ) from error
    if not isinstance(content, dict):
        raise FormatError(
            f"expected a JSON object in {path.parent.name}/{path.name}, got {type(content).__name__}; "
            "copy the prior again"
        )
    return content


def _role(part: Path) -> str | None:
    """Component that a folder's configuration describes."""
    if (part / "scheduler_config.json").is_file():
        return "scheduler"
    if (part / "config.json").is_file():
        config = read_json(part / "config.json")
        name = str(config.get("_class_name", ""))
        if name:
            kinds = {"vae": AUTOENCODERS, "unet": DENOISERS, "scorer": SCORERS}
            return next((role for role, names in kinds.items() if name in names), None)
        return "text_encoder" if _TEXT_MODEL.search(str(config.get("architectures"))) else None
    tokens = ("tokenizer_config.json", "tokenizer.json", "vocab.json")
    return "tokenizer" if any((part / name).is_file() for name in tokens) else None


def _is_listed(folder: Path, role: str) -> bool:
    """Whether ``model_index.json`` says that the component belongs to the prior."""
    index = folder / "model_index.json"
    entry = read_json(index).get(role) if index.is_file() else None
    return isinstance(entry, list) and any(entry)


def _missing(folder: Path, role: str) -> ResourceError:
    classes = []
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        config = part / "config.json"
        name = read_json(config).get("_class_name") if config.is_file() else None
        classes.append(f"{part.name}/ ({name})" if name else f"{part.name}/")
    return ResourceError(
        f"expected the component {role!r} in the prior's folder, got {', '.join(classes) or 'no subfolder'}; "
        "a prior has vae/, unet/ and scheduler/ (and text_encoder/, tokenizer/), or is a MONAI bundle with "
        f"configs/inference.json; pass subfolders={{{role!r}: NAME}} where the folder is called otherwise"
    )

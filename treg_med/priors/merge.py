"""A prior and its adapters as one complete prior folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treg_med.data.whole_folder import check_replaceable, whole_folder
from treg_med.errors import ConfigError, ResourceError
from treg_med.priors.adapter_files import ADAPTER_CARD
from treg_med.priors.adapters import apply_adapter
from treg_med.priors.card import PRIOR_CARD, write_card
from treg_med.priors.latent import DEFAULT_PRIOR, LatentPrior
from treg_med.priors.layout import component_folder
from treg_med.priors.weights import save_component

__all__ = ["merge_adapters"]

#: What a prior consists of; pickled weights, whole checkpoints and whatever else lies there stay behind.
_COPIED = ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")


def merge_adapters(prior: Path | None, adapters: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write a prior with adapters fused into its weights as a complete prior folder; returns its card.

    Adapted components are written in float32, the others are copied byte by byte.

    Parameters
    ----------
    prior : Path, optional
        Folder of the base; the embedded one by default.
    adapters : sequence of Path
        Folders as `treg_med.priors.adapters.apply_adapter` opens them, applied in this order.
    out : Path
        Folder to write; an earlier prior there is replaced as a whole.

    Raises
    ------
    ConfigError
        If there is no adapter, or the base is not in the layout of diffusers.
    ResourceError
        If ``out`` holds something else, or cannot be written.
    """
    if not adapters:
        raise ConfigError("expected at least one adapter to merge, got none")
    base = DEFAULT_PRIOR if prior is None else Path(prior)
    check_replaceable(out, PRIOR_CARD)
    if base.is_dir() and out.exists() and out.samefile(base):
        raise ResourceError(f"expected another folder than the base prior, got {str(out)!r}; choose another name")
    opened = LatentPrior.from_pretrained(prior)
    earlier, checksum = opened.card, opened.sha256
    for folder in adapters:
        apply_adapter(opened, folder)
    named = opened.card.get("subfolders", {})
    components = sorted({str(entry["component"]) for entry in opened.card["adapters"]})
    places = {name: component_folder(base, name, named.get(name)) for name in components}
    for name, place in places.items():
        if place is None or not hasattr(getattr(opened, name), "save_pretrained"):
            raise ConfigError(f"expected a base in the layout of diffusers with {name}/, got {base.name}; convert it")
    with whole_folder(out, PRIOR_CARD) as staging:
        adapted = {name: place.name for name, place in places.items() if place is not None}
        _copy(base, staging, leave_out=tuple(adapted.values()))
        for name, place_name in adapted.items():
            save_component(getattr(opened, name).float(), staging / place_name)
        card = _card(opened, earlier, checksum, base.name, adapters)
        write_card(staging, card)
    return card


def _copy(base: Path, staging: Path, leave_out: Sequence[str]) -> None:
    for file in (file for pattern in _COPIED for file in base.glob(pattern)):
        place = file.relative_to(base)
        if file.is_file() and place.parent.name not in leave_out and place.name != PRIOR_CARD:
            (staging / place).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, staging / place)


def _card(
    opened: LatentPrior, earlier: dict[str, Any], checksum: str, name: str, adapters: Sequence[Path]
) -> dict[str, Any]:
    """Card of the merged prior: measurements of the base no longer hold and are kept as its own."""
    card = {key: value for key, value in opened.card.items() if key not in ("adapters", "sha256", "metrics")}
    card.setdefault("format", 1)
    base = {"name": name, "sha256": checksum, "summary": earlier.get("summary", "unknown")}
    if "metrics" in earlier:
        base["metrics"] = earlier["metrics"]
    details = []
    for entry, folder in zip(opened.card["adapters"], adapters, strict=True):
        path = Path(folder) / ADAPTER_CARD
        own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        details.append({**own, **entry})
    card["merged_from"] = {"base": base, "adapters": details}
    return card

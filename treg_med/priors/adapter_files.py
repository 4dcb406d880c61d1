"""Reading adapter folders: safetensors only, checked against their own card.

Three layouts are known:

- ours: ``adapter.json`` beside ``pytorch_lora_weights.safetensors`` or a component folder (``vae/``, ``unet/``);
- diffusers: ``pytorch_lora_weights.safetensors``, with or without the prefix ``unet.``;
- peft: ``adapter_config.json`` and ``adapter_model.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from treg_med.data.safe_hdf5 import sha256_of
from treg_med.errors import FormatError, ResourceError, UnsafeFileError

__all__ = ["ADAPTER_CARD", "FORMAT", "LORA_HEADER", "LORA_WEIGHTS", "AdapterFolder", "read_adapter_folder"]

FORMAT = 1
ADAPTER_CARD = "adapter.json"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_COMPONENTS = ("vae", "unet")
_METHODS = ("lora", "full")
#: Key of the LoRA configuration in the header of a file written by diffusers.
LORA_HEADER = "lora_adapter_metadata"


@dataclass(frozen=True)
class AdapterFolder:
    """Content of an adapter folder.

    Attributes
    ----------
    name : str
        Last part of the folder's path.
    component : str
        ``vae`` or ``unet``: the part of a prior that the weights belong to.
    method : str
        ``lora`` (``weights`` are low-rank factors) or ``full`` (``weights`` replace all of the component).
    weights : dict of str to Tensor
        By name inside the component.
    config : dict, optional
        LoRA settings that the folder states (rank, alpha, ...).
    card : dict
        Content of ``adapter.json``; empty for other layouts.
    files : dict of str to str
        File name -> SHA-256.
    notes : tuple of str
        What was left out.
    """

    name: str
    component: str
    method: str
    weights: dict[str, Tensor]
    config: dict[str, Any] | None
    card: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash over the checksums of the files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def read_adapter_folder(folder: str | Path) -> AdapterFolder:
    """Read an adapter folder of any of the three layouts.

    Raises
    ------
    ResourceError
        If the folder or its weights are missing.
    UnsafeFileError
        If there are only pickled weights, or the card names files outside the folder.
    FormatError
        If a file cannot be read, a checksum does not match, or the kind of adapter is not supported.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ResourceError(f"expected an adapter folder, got {str(path)!r}, which is not one; pass the folder itself")
    if (path / ADAPTER_CARD).is_file():
        return _ours(path)
    if (path / _PEFT_CONFIG).is_file():
        return _peft(path)
    weights, config = _tensors(path, LORA_WEIGHTS)
    return _lora(path, weights, config, [LORA_WEIGHTS])


def _ours(path: Path) -> AdapterFolder:
    card = _json((path / ADAPTER_CARD).read_text(encoding="utf-8", errors="replace"), ADAPTER_CARD)
    component, method = card.get("component"), card.get("method")
    if card.get("format") != FORMAT or component not in _COMPONENTS or method not in _METHODS:
        raise FormatError(
            f"expected format {FORMAT}, a component of {_COMPONENTS} and a method of {_METHODS} in {ADAPTER_CARD}, got "
            f"{card.get('format')!r}, {component!r} and {method!r}; use a newer treg-med, or adapt again"
        )
    files = _verified(path, card)
    if method == "lora":
        weights, config = _tensors(path, LORA_WEIGHTS)
        return AdapterFolder(path.resolve().name, component, method, weights, config, card, files)
    parts = sorted(p.relative_to(path).as_posix() for p in (path / component).glob("*.safetensors"))
    if not parts:
        raise ResourceError(f"expected safetensors in {component}/ of the adapter {path.name}, got none; copy it again")
    everything = {name: tensor for part in parts for name, tensor in _tensors(path, part)[0].items()}
    return AdapterFolder(path.resolve().name, component, method, everything, None, card, files)


def _verified(path: Path, card: dict[str, Any]) -> dict[str, str]:
    """Checksums of the card after each was compared with its file."""
    sums = card.get("sha256")
    if not isinstance(sums, dict) or not sums:
        raise FormatError(f"expected checksums in {ADAPTER_CARD}, got none; adapt again")
    for name, expected in sums.items():
        part = path / str(name)
        if not part.resolve().is_relative_to(path.resolve()):
            raise UnsafeFileError(f"expected files inside the adapter's folder in {ADAPTER_CARD}, got {name!r}")
        if not part.is_file():
            raise ResourceError(f"expected {name} in the adapter {path.name}, as its card lists it; copy it again")
        if sha256_of(part) != expected:
            raise FormatError(f"expected the checksum of {ADAPTER_CARD} for {name}, got another one; copy it again")
    return {str(name): str(value) for name, value in sums.items()}


def _peft(path: Path) -> AdapterFolder:
    config = _json((path / _PEFT_CONFIG).read_text(encoding="utf-8", errors="replace"), _PEFT_CONFIG)
    if config.get("peft_type") != "LORA":
        raise FormatError(f"expected peft_type LORA in {_PEFT_CONFIG}, got {config.get('peft_type')!r}; merge it first")
    weights, _ = _tensors(path, _PEFT_WEIGHTS)
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
    return _lora(path, weights, config, [_PEFT_CONFIG, _PEFT_WEIGHTS])


def _lora(path: Path, weights: dict[str, Tensor], config: dict[str, Any] | None, files: list[str]) -> AdapterFolder:
    """Keep what belongs to the denoiser: pipelines put the adapters of all components into one file."""
    notes: tuple[str, ...] = ()
    if any(name.startswith("unet.") for name in weights):
        others = sorted({name.split(".")[0] for name in weights} - {"unet"})
        if others:
            notes = (f"the adapter {path.name} also changes {', '.join(others)}, which was left as it is",)
        weights = {n.removeprefix("unet."): tensor for n, tensor in weights.items() if n.startswith("unet.")}
        if config:
            config = {n.removeprefix("unet."): v for n, v in config.items() if n.startswith("unet.")} or None
    sums = {name: sha256_of(path / name) for name in files}
    return AdapterFolder(path.resolve().name, "unet", "lora", weights, config, {}, sums, notes)


def _json(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise FormatError(f"expected JSON in {name} of the adapter, got: {error}; copy the adapter again") from error
    if not isinstance(content, dict):
        raise FormatError(f"expected a JSON object in {name} of the adapter, got {type(content).__name__}")
    return content


def _tensors(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors of a safetensors file, and the LoRA configuration in its header where there is one."""
    file = path / name
    if not file.is_file():
        pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern)]
        if pickled:
            raise UnsafeFileError(
                f"expected {name} in the adapter {path.name}, got only {pickled[0]}, which would have to be unpickled; "
                "convert it to safetensors"
            )
        raise ResourceError(
            f"expected {ADAPTER_CARD}, {_PEFT_CONFIG} or {LORA_WEIGHTS} in the adapter {path.name} and the weights "
            f"that belong to it, got no {name}; pass the folder of an adapter"
        )
    try:
        with safe_open(file, "pt") as opened:
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            header = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise FormatError(f"expected safetensors in {name} of the adapter, got: {error}; copy it again") from error
    return weights, _json(header[LORA_HEADER], name) if LORA_HEADER in header else None

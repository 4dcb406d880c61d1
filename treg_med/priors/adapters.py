r"""Adapters on top of a prior: low-rank factors are added to the weights, a fully trained component replaces them.

.. math:: W \leftarrow W + \frac{\alpha}{r}\, B A

Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError
from treg_med.priors.adapter_files import AdapterFolder, read_adapter_folder
from treg_med.priors.domain_guard import DOMAIN

if TYPE_CHECKING:
    from treg_med.priors.latent import LatentPrior

__all__ = ["apply_adapter", "apply_adapters", "base_sha256", "require_package"]

_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<which>A|B|magnitude_vector)(\.(?P<kind>weight|bias))?")
#: The settings of a LoRA that its forward pass depends on; all others steer a training.
_CONFIG = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
#: Initialisations that leave the weights of the base as they are.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def apply_adapter(prior: LatentPrior, folder: str | Path) -> LatentPrior:
    """Put an adapter on top of a prior: its weights change in place, its card and source say so; returns the prior.

    The card gets an entry in ``adapters`` and the checksums of the adapter's files, so that ``prior.sha256`` changes
    too. The adapter costs nothing at run time: low-rank factors are fused into the weights.

    Parameters
    ----------
    prior : LatentPrior
        To change.
    folder : str or Path
        Written by ``treg-med adapt``, by diffusers (``pytorch_lora_weights.safetensors``) or by peft
        (``adapter_config.json`` and ``adapter_model.safetensors``).

    Raises
    ------
    ConfigError
        If a fully trained component was made for another prior.
    GeometryError
        If shapes do not fit the prior.
    FormatError
        If the adapter names layers that the prior does not have, or is of an unknown kind.
    ResourceError
        If the folder, its weights or peft are missing.
    UnsafeFileError
        If there are only pickled weights.

    Warns
    -----
    UserWarning
        If low-rank factors were made for another prior with the same shapes, or parts of the adapter are not used.
    """
    adapter = read_adapter_folder(folder)
    base = base_sha256(prior)
    notes = (*adapter.notes, *_foreign_base(adapter, base))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    module = getattr(prior, adapter.component)
    if adapter.method == "lora":
        _fuse(module, adapter)
    else:
        _replace(module, adapter)
    _note(prior, adapter, base, notes)
    return prior


def apply_adapters(prior: LatentPrior, folders: str | Path | Sequence[str | Path]) -> LatentPrior:
    """Put one adapter or several, in their order, on top of a prior (see `apply_adapter`)."""
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        apply_adapter(prior, folder)
    return prior


def base_sha256(prior: LatentPrior) -> str:
    """Checksum of a prior without the adapters on it; empty where its folder has no card."""
    adapters = prior.card.get("adapters")
    return str(adapters[0]["base_sha256"]) if adapters else prior.sha256


def require_package(name: str) -> None:
    """Refuse early where a package of the extra ``train`` is missing.

    Raises
    ------
    ResourceError
        Naming the extra to install.
    """
    if importlib.util.find_spec(name) is None:
        raise ResourceError(
            f"expected the package {name} for adapters, which is not installed; pip install 'treg-med[train]'"
        )


def _foreign_base(adapter: AdapterFolder, base: str) -> tuple[str, ...]:
    """Sentence about an adapter that was made for another prior; a replaced component must not be one."""
    made_for = str(adapter.card.get("base", {}).get("sha256", ""))
    if not made_for or not base or made_for == base:
        return ()
    name = adapter.card["base"].get("name", "another prior")
    if adapter.method == "full":
        raise ConfigError(
            f"expected an adapter of this prior (checksum {base[:12]}), got {adapter.name}, whose {adapter.component} "
            f"was trained for {name} (checksum {made_for[:12]}) and replaces all weights; adapt this prior"
        )
    return (
        f"the adapter {adapter.name} was trained for {name} (checksum {made_for[:12]}), not for this prior (checksum "
        f"{base[:12]}): measure before you trust it",
    )


def _fuse(module: Any, adapter: AdapterFolder) -> None:
    from diffusers.utils import convert_unet_state_dict_to_peft

    require_package("peft")
    if not hasattr(module, "load_lora_adapter"):
        raise ConfigError(f"expected a network of diffusers under a LoRA, got {type(module).__name__}")
    weights = adapter.weights
    if not any(".lora_A" in name for name in weights):
        weights = convert_unet_state_dict_to_peft(weights)
    _check_factors(module, weights, adapter)
    config = None if adapter.config is None else {n: adapter.config[n] for n in _CONFIG if n in adapter.config}
    if config is not None:
        start = adapter.config.get("init_lora_weights", True) if adapter.config else True
        if start not in _PLAIN_STARTS:
            raise FormatError(
                f"expected a LoRA beside unchanged weights, got init_lora_weights={start!r} in {adapter.name}, which "
                "changes them; save it as a plain LoRA"
            )
        config["target_modules"] = sorted({name.split(".lora_")[0] for name in weights})
    try:
        module.load_lora_adapter(weights, prefix=None, metadata=config, adapter_name="adapter")
        module.fuse_lora()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"expected a LoRA for {adapter.component} in {adapter.name}, got: {first}") from error
    module.unload_lora()


def _check_factors(module: nn.Module, weights: dict[str, Tensor], adapter: AdapterFolder) -> None:
    """Every tensor must be a factor of a layer of the network, of the right shape."""
    layers: dict[str, set[str]] = {}
    for name, tensor in weights.items():
        found = _FACTOR.fullmatch(name)
        if found is None:
            raise FormatError(
                f"expected only lora_A and lora_B of layers in the adapter {adapter.name}, got {name!r}; convert it to "
                "the layout of diffusers, or merge it first"
            )
        layer = _layer(module, found["layer"], adapter)
        layers.setdefault(found["layer"], set()).add(found["which"])
        expected = _expected(layer, found["which"], tensor)
        if found["kind"] != "bias" and found["which"] != "magnitude_vector" and tuple(tensor.shape) != expected:
            raise GeometryError(
                f"expected {name} of shape {expected} for the {adapter.component} of this prior, got "
                f"{tuple(tensor.shape)}; the adapter {adapter.name} was made for another prior"
            )
    for name, factors in layers.items():
        first, second = (weights.get(f"{name}.lora_{which}.weight") for which in "AB")
        if not {"A", "B"} <= factors or first is None or second is None or first.shape[0] != second.shape[1]:
            raise FormatError(f"expected lora_A and lora_B of one rank for {name} in {adapter.name}; copy it again")
    if not layers:
        raise FormatError(f"expected low-rank factors in the adapter {adapter.name}, got none; copy it again")


def _layer(module: nn.Module, name: str, adapter: AdapterFolder) -> nn.Linear | nn.Conv2d:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise FormatError(
            f"expected layers of this prior's {adapter.component} in the adapter {adapter.name}, got {name!r}; the "
            "adapter was made for another kind of network"
        )
    return layer


def _expected(layer: nn.Linear | nn.Conv2d, which: str, tensor: Tensor) -> tuple[int, ...]:
    """Shape that a factor of the tensor's rank must have."""
    weight, ones = layer.weight, (1, 1) if isinstance(layer, nn.Conv2d) else ()
    if which == "A":
        return (tensor.shape[0] if tensor.ndim else 0, *weight.shape[1:])
    return (weight.shape[0], tensor.shape[1] if tensor.ndim > 1 else 0, *ones)


@torch.no_grad()
def _replace(module: nn.Module, adapter: AdapterFolder) -> None:
    own = module.state_dict()
    missing, strange = sorted(set(own) - set(adapter.weights)), sorted(set(adapter.weights) - set(own))
    if missing or strange:
        raise FormatError(
            f"expected the weights of this prior's {adapter.component} in {adapter.name}, got "
            f"{'no ' + missing[0] if missing else strange[0]}; the adapter was made for another prior"
        )
    for name, tensor in own.items():
        if tensor.shape != adapter.weights[name].shape:
            raise GeometryError(
                f"expected {name} of shape {tuple(tensor.shape)} for the {adapter.component} of this prior, got "
                f"{tuple(adapter.weights[name].shape)}; the adapter {adapter.name} was made for another prior"
            )
    module.load_state_dict(adapter.weights)


def _note(prior: LatentPrior, adapter: AdapterFolder, base: str, notes: tuple[str, ...]) -> None:
    """Say on the card what is on top; a new card, as the old one may be shared."""
    # Where the base is at home says nothing of an adapted prior.
    card = {key: value for key, value in prior.card.items() if key != DOMAIN}
    entry: dict[str, Any] = {
        "name": adapter.name,
        "component": adapter.component,
        "method": adapter.method,
        "sha256": adapter.sha256,
        "base_sha256": base,
        "data": adapter.card.get("data", {}).get("file", "unknown"),
    }
    if notes:
        entry["warnings"] = list(notes)
    card["adapters"] = [*card.get("adapters", []), entry]
    # Two adapters may bear one name.
    prefix = f"adapter {len(card['adapters'])} {adapter.name}"
    files = {f"{prefix}/{name}": value for name, value in adapter.files.items()}
    card["sha256"] = {**card.get("sha256", {}), **files}
    trained_on = card.get("summary", "unknown")
    card["summary"] = f"{trained_on}; {adapter.component} adapted ({adapter.method}) to {entry['data']}"
    if card.get("words"):
        card["words"] = sorted({*card["words"], *adapter.card.get("words", ())})
    prior.card = card
    prior.source = f"{prior.source} + {adapter.name}"

"""Writing an adapter folder: safetensors and a card, complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from treg_med.data.whole_folder import whole_folder
from treg_med.notice import RESEARCH_ONLY
from treg_med.priors.adapter_files import ADAPTER_CARD, FORMAT, LORA_HEADER, LORA_WEIGHTS
from treg_med.priors.adapters import base_sha256
from treg_med.priors.card import write_card
from treg_med.priors.latent import LatentPrior
from treg_med.priors.weights import save_component
from treg_med.words.captions import words_of

if TYPE_CHECKING:
    from treg_med.training.adaptation.run import AdaptationSettings

__all__ = ["write_adapter"]


def write_adapter(
    prior: LatentPrior,
    component: str,
    settings: AdaptationSettings,
    captions: Iterable[str],
    facts: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Write the trained weights of a component and return the card (``adapter.json``).

    Parameters
    ----------
    prior : LatentPrior
        With the trained weights in place; low-rank factors as peft layers.
    component : str
        ``vae`` or ``unet``.
    settings : AdaptationSettings
        Method and rank decide the layout: ``pytorch_lora_weights.safetensors`` or a component folder.
    captions : iterable of str
        Sentences of the training; their words are on the card, numbers left out.
    facts : Mapping
        Further entries of the card.
    out : Path
        Folder to write.

    Raises
    ------
    ResourceError
        If ``out`` holds something else, or cannot be written.
    """
    module = getattr(prior, component)
    lora = settings.method == "lora"
    card: dict[str, Any] = {"format": FORMAT, "component": component, "method": settings.method}
    card |= {"rank": settings.rank, "alpha": settings.rank} if lora else {}
    # The last part of the path alone: a whole path may name a person.
    card["base"] = {
        "name": Path(prior.source).name,
        "sha256": base_sha256(prior),
        "summary": str(prior.card.get("summary", "unknown")),
    }
    card |= facts
    card["words"] = sorted(words_of(captions)) if component == "unet" else []
    card["limits"] = RESEARCH_ONLY
    with whole_folder(out, ADAPTER_CARD) as staging:
        if lora:
            _save_factors(module, settings.rank, staging / LORA_WEIGHTS)
        else:
            save_component(module, staging / component)
        write_card(staging, card, ADAPTER_CARD)
    return card


def _save_factors(module: Any, rank: int, path: Path) -> None:
    """Write low-rank factors as diffusers does, with what it needs to load them again in the header."""
    from peft import get_peft_model_state_dict

    factors = {name: t.detach().float().cpu().contiguous() for name, t in get_peft_model_state_dict(module).items()}
    layers = sorted({name.split(".lora_")[0] for name in factors})
    config = {"r": rank, "lora_alpha": rank, "target_modules": layers}
    save_file(factors, path, metadata={"format": "pt", LORA_HEADER: json.dumps(config)})

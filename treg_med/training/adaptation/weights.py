"""Which weights of a prior an adaptation trains: all of a component's, or low-rank factors beside them."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from treg_med.errors import ConfigError
from treg_med.priors.adapters import require_package
from treg_med.priors.latent import LatentPrior

__all__ = ["adapted_layers", "trained_weights"]

#: Attention projections and convolutions of a denoiser. The first and last ones see the latent itself: another domain
#: has another spectrum there.
_DENOISER = re.compile(r"(.+\.)?(to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_in|conv_out)")
#: What comes after the latent in an autoencoder: ours, and that of diffusers.
_DECODER = re.compile(r"(null_decoder|decoder|post_quant_conv)(\..+)?")


def adapted_layers(prior: LatentPrior, component: str) -> list[str]:
    """Names of the layers of ``vae`` or ``unet`` that get low-rank factors."""
    network = getattr(prior, component)
    names = []
    # A network of another library could be trained, but not written as an adapter.
    for name, module in network.named_modules() if isinstance(network, ModelMixin) else ():
        if component == "vae":
            wanted = isinstance(module, nn.Conv2d) and _DECODER.fullmatch(name)
        else:
            wanted = isinstance(module, nn.Conv2d | nn.Linear) and _DENOISER.fullmatch(name)
        if wanted:
            names.append(name)
    if not names:
        raise ConfigError(
            f"expected a {component} of diffusers with layers to adapt, got {type(network).__name__}; "
            "use a prior in the layout of diffusers"
        )
    return names


def trained_weights(
    prior: LatentPrior, component: str, method: str, rank: int, generator: torch.Generator
) -> nn.ParameterDict:
    """Freeze a prior but for the weights to train, and return those; low-rank factors start at no change.

    The encoder of an autoencoder is never trained: the latents, and with them the denoiser, stay valid.

    Parameters
    ----------
    prior : LatentPrior
        In float32; changed in place.
    component : str
        ``vae`` or ``unet``.
    method : str
        ``lora`` or ``full``.
    rank : int
        Of the factors; their alpha is the same, so that they count once.
    generator : torch.Generator
        For the first factors.

    Raises
    ------
    ConfigError
        If the component has no such weights.
    ResourceError
        If peft is needed and missing.
    """
    for part in (prior.vae, prior.unet, prior.text_encoder):
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    module: Any = getattr(prior, component)
    layers = adapted_layers(prior, component)
    if method == "lora":
        _add_factors(module, layers, rank, generator)
    else:
        # A word map says what words draw where nothing else is known, and the loss of a denoiser hardly tells.
        for name, parameter in module.named_parameters():
            wanted = not name.startswith("word_map.") if component == "unet" else _DECODER.fullmatch(name) is not None
            parameter.requires_grad_(wanted)
    # A dot would make it a path of modules.
    return nn.ParameterDict({n.replace(".", "/"): p for n, p in module.named_parameters() if p.requires_grad})


def _add_factors(module: Any, layers: list[str], rank: int, generator: torch.Generator) -> None:
    require_package("peft")
    from peft import LoraConfig

    # peft draws from the global generator, which belongs to the caller.
    with torch.random.fork_rng():
        module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            drawn = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)

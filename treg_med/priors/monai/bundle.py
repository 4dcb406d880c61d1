"""Opening a MONAI bundle of a 2-D latent diffusion model: ``configs/``, and safetensors in ``models/``."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.priors.card import FolderOptions, value_range
from treg_med.priors.components import load_text_parts, readable
from treg_med.priors.conditioning import VectorConditioning
from treg_med.priors.layout import component_folder, read_json
from treg_med.priors.monai.config import BundleConfig
from treg_med.priors.weights import check_file, is_pickled, pickled_error

__all__ = ["load_bundle"]

_OTHER_AUTOENCODER = "it has other latents; bring an AutoencoderKL"
_AUTOENCODERS = {
    "AutoencoderKL": "",
    "AutoencoderKlMaisi": "volumes are not supported, only 2-D slices",
    "SPADEAutoencoderKL": "segmentation masks are not supported",
    "VQVAE": _OTHER_AUTOENCODER,
}
_DENOISERS = {
    "DiffusionModelUNet": "",
    "DiffusionModelUNetMaisi": "volumes are not supported, only 2-D slices",
    "SPADEDiffusionModelUNet": "segmentation masks are not supported",
    "DiffusionModelEncoder": "it is no denoiser",
}
_SCHEDULERS = {
    "DDIMScheduler": "",
    "DDPMScheduler": "",
    "PNDMScheduler": "it has no class in MONAI any more; write DDIMScheduler with the same betas",
    "RFlowScheduler": "rectified flow is not supported; bring a prior trained with DDPM or DDIM",
}
# Tensors that only one of the two networks has, so that a weight file is known by its content.
_MARKERS = {"vae": "quant_conv_mu.", "unet": "time_embed."}
_COUNTS = ("spatial_dims", "in_channels", "out_channels", "latent_channels")
_IMAGE_RANGE = (0.0, 1.0)
_OLD_SCHEDULES = {"linear": "linear_beta", "scaled_linear": "scaled_linear_beta", "sigmoid": "sigmoid_beta"}


def load_bundle(folder: Path, dtype: torch.dtype, options: FolderOptions) -> dict[str, Any]:
    """Autoencoder, denoiser, scheduler and conditioning of a MONAI bundle.

    Only ``AutoencoderKL``, ``DiffusionModelUNet`` and the DDPM and DDIM schedulers are ever made, from literal
    arguments. The image range is that of the bundle's metadata, and MONAI's usual [0, 1] where they are silent.

    Raises
    ------
    ConfigError
        For volumes, rectified flow and other classes, or where the latent scale or the names of a condition vector
        are not known.
    FormatError
        If the configuration or the weights cannot be used.
    UnsafeFileError
        If a needed value is an expression, or the weights are pickled.
    ResourceError
        If weights are missing.
    """
    with readable("the MONAI bundle"):
        from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

    config = BundleConfig.of(folder)
    path = folder / "configs" / "metadata.json"
    metadata = read_json(path) if path.is_file() else {}
    vae = _arguments(AutoencoderKL, "autoencoder", config.definition("autoencoder", _AUTOENCODERS)[1])
    unet = _arguments(DiffusionModelUNet, "denoiser", config.definition("denoiser", _DENOISERS)[1])
    scheduler = _schedule(*config.definition("noise scheduler", _SCHEDULERS))
    text = _text_parts(folder, dtype, options)
    latent = int(vae["latent_channels"])
    extra = int(unet["in_channels"]) - latent
    vector = None if text["text_encoder"] is not None else _vector(unet, extra, latent, metadata, options)
    return {
        "vae": _autoencoder(folder, vae, _scale_factor(config, metadata, options), metadata, options).to(dtype),
        "unet": _denoiser(folder, unet, extra if vector is not None else 0, options).to(dtype),
        "scheduler": scheduler,
        "conditioning": vector,
        **text,
    }


def _arguments(cls: Any, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a network, with the class's own defaults for those that the bundle leaves out."""
    # The name that MONAI Generative gave it.
    renamed = {("channels" if key == "num_channels" else key): value for key, value in given.items()}
    with readable(f"configs/inference.json ({cls.__name__})"):
        bound = inspect.signature(cls).bind(**renamed)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    counts = [key for key in _COUNTS if key in arguments and not _is_count(arguments[key])]
    if counts:
        raise FormatError(
            f"expected {counts[0]} of the {name} in configs/inference.json as a number, got {arguments[counts[0]]!r}; "
            "write it there"
        )
    if arguments["spatial_dims"] != 2:
        raise ConfigError(
            f"expected a 2-D {name} (spatial_dims 2) in configs/inference.json, got spatial_dims "
            f"{arguments['spatial_dims']}; priors of volumes are not supported, bring one of slices"
        )
    if arguments.get("num_class_embeds") is not None:
        raise ConfigError(
            f"expected a {name} conditioned on a text, a vector or nothing, got num_class_embeds "
            f"{arguments['num_class_embeds']}; class labels are not supported"
        )
    return arguments


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _schedule(name: str, arguments: dict[str, Any]) -> Any:
    """Take a MONAI scheduler's betas and prediction type over into diffusers' DDIM."""
    from diffusers import DDIMScheduler
    from monai.networks.schedulers import DDIMScheduler as MonaiDDIM
    from monai.networks.schedulers import DDPMScheduler as MonaiDDPM

    old = arguments.pop("beta_schedule", None)
    if old is not None:
        arguments.setdefault("schedule", old)
    if "schedule" in arguments:
        arguments["schedule"] = _OLD_SCHEDULES.get(arguments["schedule"], arguments["schedule"])
    with readable(f"configs/inference.json ({name})"):
        made = (MonaiDDIM if name == "DDIMScheduler" else MonaiDDPM)(**arguments)
        return DDIMScheduler(
            num_train_timesteps=made.num_train_timesteps,
            trained_betas=made.betas.tolist(),
            prediction_type=str(made.prediction_type),
            clip_sample=bool(made.clip_sample),
        )


def _text_parts(folder: Path, dtype: torch.dtype, options: FolderOptions) -> dict[str, Any]:
    """Text encoder and tokenizer beside ``configs/`` or in ``models/``."""
    found: list[Path | None] = []
    for role in ("text_encoder", "tokenizer"):
        places = [place for place in (folder, folder / "models") if place.is_dir()]
        named = options.subfolders.get(role)
        parts = [component_folder(place, role) for place in places] if named is None else []
        if named is not None:
            parts = [component_folder(folder, role, named)]
        found.append(next((part for part in parts if part is not None), None))
    if (found[0] is None) != (found[1] is None):
        raise ResourceError("expected text_encoder/ and tokenizer/ in the bundle, got one of them; copy the other")
    return load_text_parts(found[0], found[1], dtype)


def _vector(
    unet: Mapping[str, Any], extra: int, latent: int, metadata: Mapping[str, Any], options: FolderOptions
) -> VectorConditioning | None:
    """Vector condition of a denoiser without a text encoder; None for an unconditional one."""
    context = int(unet["cross_attention_dim"] or 0) if unet["with_conditioning"] else 0
    if extra < 0 or (context and extra not in (0, context)):
        raise FormatError(
            f"expected in_channels of the denoiser to be latent_channels {latent} of the autoencoder, or that and the "
            f"{context} entries of a condition vector, got in_channels {unet['in_channels']}; bring the autoencoder "
            "the denoiser was trained with"
        )
    width = context or extra
    if not width:
        return None
    names, limits = _named_entries(metadata, width)
    if options.condition_names is not None:
        names = options.condition_names
    if names is None:
        raise ConfigError(
            f"expected the names of the {width} numbers that the denoiser is conditioned on, got none in "
            "configs/metadata.json; pass condition_names=('sex', 'age', ...) in their order, write them into a "
            "prior.json in the folder, or, for a prior with text, add text_encoder/ and tokenizer/"
        )
    if len(names) != width:
        raise ConfigError(
            f"expected {width} condition_names, one for each number the denoiser takes, got {len(names)}: "
            f"{', '.join(names)}; name each of them once"
        )
    return VectorConditioning(tuple(names), limits)


def _named_entries(
    metadata: Mapping[str, Any], width: int
) -> tuple[tuple[str, ...] | None, tuple[float, float] | None]:
    """Names and range of the input in a bundle's metadata that has that many named entries and is no image."""
    for entry in _entries(metadata, "inputs"):
        names = entry.get("channel_def")
        if entry.get("type") != "image" and isinstance(names, Mapping) and len(names) == width:
            keys = sorted(names, key=lambda key: (len(str(key)), str(key)))
            return tuple(str(names[key]) for key in keys), value_range(entry.get("value_range"))
    return None, None


def _entries(metadata: Mapping[str, Any], direction: str) -> list[Mapping[str, Any]]:
    formats = metadata.get("network_data_format")
    entries = formats.get(direction) if isinstance(formats, Mapping) else None
    return [entry for entry in entries.values() if isinstance(entry, Mapping)] if isinstance(entries, Mapping) else []


def _scale_factor(config: BundleConfig, metadata: Mapping[str, Any], options: FolderOptions) -> float:
    known = (options.scaling_factor, config.scale_factor(), metadata.get("scale_factor"))
    scale = next((value for value in known if value is not None), None)
    if scale is None:
        raise ConfigError(
            "expected the number that multiplies the autoencoder's latents (scale_factor) in configs/inference.json, "
            "got none or an expression; pass scaling_factor=..., 1.0 where the bundle decodes its latents as they are, "
            "or write it into a prior.json in the folder"
        )
    if not isinstance(scale, int | float) or not math.isfinite(scale) or scale <= 0:
        raise FormatError(f"expected a positive scale_factor in configs/inference.json, got {scale!r}; correct it")
    return float(scale)


def _image_range(metadata: Mapping[str, Any], options: FolderOptions) -> tuple[float, float]:
    if options.image_range is not None:
        return options.image_range
    entries = (*_entries(metadata, "outputs"), *_entries(metadata, "inputs"))
    ranges = (value_range(entry.get("value_range")) for entry in entries if entry.get("type") == "image")
    return next((limits for limits in ranges if limits is not None), _IMAGE_RANGE)


def _autoencoder(
    folder: Path, arguments: dict[str, Any], scale: float, metadata: Mapping[str, Any], options: FolderOptions
) -> nn.Module:
    from monai.networks.nets import AutoencoderKL

    from treg_med.priors.monai.networks import MonaiAutoencoder

    network = _network(AutoencoderKL, arguments, _weights(folder, "vae", options))
    config = {
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["out_channels"],
        "latent_channels": arguments["latent_channels"],
        "block_out_channels": tuple(arguments["channels"]),
        "scaling_factor": scale,
        "shift_factor": options.shift_factor,
    }
    return MonaiAutoencoder(network, config, _image_range(metadata, options))


def _denoiser(folder: Path, arguments: dict[str, Any], extra: int, options: FolderOptions) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    from treg_med.priors.monai.networks import MonaiDenoiser

    network = _network(DiffusionModelUNet, arguments, _weights(folder, "unet", options))
    config = {
        "in_channels": arguments["in_channels"] - extra,
        "out_channels": arguments["out_channels"],
        "block_out_channels": tuple(arguments["channels"]),
        "cross_attention_dim": arguments["cross_attention_dim"],
    }
    return MonaiDenoiser(network, config, extra)


def _network(cls: Any, arguments: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """Make one network and give it every weight, in the names of MONAI or of MONAI Generative before it."""
    with readable(f"configs/inference.json ({cls.__name__})"), torch.random.fork_rng(devices=[]):
        network = cls(**arguments)
    with readable(f"models/ ({cls.__name__})"):
        if network.state_dict().keys() == weights.keys():
            network.load_state_dict(weights)
            return network
        # MONAI's translation of old names leaves what it does not find as it was, and prints.
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(math.nan)
        with contextlib.redirect_stdout(io.StringIO()):
            network.load_old_state_dict(weights)
    unfilled = [name for name, parameter in network.named_parameters() if bool(parameter.isnan().any())]
    if unfilled or weights:
        raise FormatError(
            f"expected the weights of {cls.__name__} as configs/inference.json describes it, got "
            f"{f'none for {unfilled[0]}' if unfilled else f'{next(iter(weights))} besides'}; copy the bundle again"
        )
    return network


def _weights(folder: Path, role: str, options: FolderOptions) -> dict[str, Tensor]:
    """Tensors of the one safetensors file of ``models/`` that holds a network's."""
    from safetensors.torch import load_file

    models = folder / "models"
    files = sorted(models.iterdir()) if models.is_dir() else []
    named = options.subfolders.get(role)
    if named is not None:
        found = [folder / named]
        if not found[0].is_file() or not found[0].resolve().is_relative_to(folder.resolve()):
            raise ResourceError(
                f"expected the weights of {role!r} in {named!r} of the bundle, got none; check subfolders"
            )
        if is_pickled(found[0]):
            raise pickled_error(found[0])
    else:
        candidates = [path for path in files if path.suffix == ".safetensors"]
        marker = _MARKERS[role]
        found = [path for path in candidates if any(key.startswith(marker) for key in check_file(path))]
    if len(found) > 1:
        raise ConfigError(
            f"expected one file of weights of {role!r} in models/, got {', '.join(path.name for path in found)}; pass "
            f"subfolders={{{role!r}: 'models/{found[0].name}'}} or keep one"
        )
    if not found:
        pickled = [path for path in files if is_pickled(path)]
        if pickled:
            raise pickled_error(pickled[0])
        raise ResourceError(
            f"expected safetensors with the weights of {role!r} in models/ of the bundle, got none; "
            "copy them there"
        )
    check_file(found[0])
    return dict(load_file(found[0]))

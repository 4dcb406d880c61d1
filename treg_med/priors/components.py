"""Opening the parts of a prior's folder: safetensors only, offline only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from treg_med.errors import FormatError, ResourceError, UnsafeFileError

__all__ = ["load_components"]


def load_components(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Autoencoder, denoiser, scheduler, text encoder and tokenizer of a folder in the Stable Diffusion layout."""
    has_text = (folder / "text_encoder").is_dir()
    return {
        "vae": _open(folder / "vae", _autoencoder, dtype),
        "unet": _open(folder / "unet", _denoiser, dtype),
        "scheduler": _open(folder / "scheduler", _scheduler, dtype),
        "text_encoder": _open(folder / "text_encoder", _text_encoder, dtype) if has_text else None,
        "tokenizer": _open(folder / "tokenizer", _tokenizer, dtype) if has_text else None,
    }


def _open(folder: Path, load: Callable[[Path, torch.dtype], Any], dtype: torch.dtype) -> Any:
    if not folder.is_dir():
        raise ResourceError(
            f"expected the component folder {folder.name!r} in the prior's folder, got none; "
            "a prior has vae/, unet/ and scheduler/"
        )
    pickled = [p.name for pattern in ("*.bin", "*.ckpt", "*.pt") for p in folder.glob(pattern)]
    if pickled and not any(folder.glob("*.safetensors")):
        raise UnsafeFileError(
            f"expected safetensors in {folder.name}/, got only {pickled[0]}, which would have to be unpickled; "
            "convert it to safetensors"
        )
    try:
        return load(folder, dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"expected a readable component in {folder.name}/ of the prior, got: {first}") from error


def _class_name(folder: Path) -> str:
    path = folder / "config.json"
    return str(json.loads(path.read_text(encoding="utf-8")).get("_class_name", "")) if path.is_file() else ""


def _variant(folder: Path) -> dict[str, Any]:
    """Name the half-precision variant where it is the only one, as diffusers asks for."""
    plain = [p for p in folder.glob("*.safetensors") if ".fp16" not in p.name]
    return {"variant": "fp16"} if not plain and any(folder.glob("*.fp16*.safetensors")) else {}


def _autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    from treg_med.priors.autoencoder import NullSpaceAutoencoder

    name = _class_name(folder)
    known: dict[str, Any] = {"NullSpaceAutoencoder": NullSpaceAutoencoder}
    cls = known.get(name) or getattr(diffusers, name or "AutoencoderKL", None)
    if cls is None:
        raise FormatError(f"expected an autoencoder class of diffusers in vae/config.json, got {name!r}")
    return cls.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **_variant(folder)
    )


def _denoiser(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **_variant(folder)
    )


def _scheduler(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_pretrained(folder, local_files_only=True)


def _text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModel, CLIPTextModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    cls = CLIPTextModel if config.model_type.startswith("clip") else AutoModel
    return cls.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True, **_variant(folder)
    )


def _tokenizer(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)

"""Opening the parts of a prior's folder in the Stable Diffusion layout: safetensors only, offline only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from treg_med.errors import ConfigError, FormatError, ResourceError, TregMedError
from treg_med.priors.card import FolderOptions
from treg_med.priors.layout import AUTOENCODERS, DENOISERS, SCORERS, find_components, read_json
from treg_med.priors.noise_schedule import load_schedule
from treg_med.priors.weights import component_variant

__all__ = ["load_components", "load_denoiser", "load_text_parts", "readable"]


def load_components(folder: Path, dtype: torch.dtype, options: FolderOptions) -> dict[str, Any]:
    """Every component of a folder in the Stable Diffusion layout; a scorer is opened where there is one."""
    parts = find_components(folder, options.subfolders)
    vae = _open(parts["vae"], _autoencoder, dtype)
    given = {"scaling_factor": options.scaling_factor, "shift_factor": options.shift_factor}
    vae.register_to_config(**{key: value for key, value in given.items() if value is not None})
    return {
        "vae": vae,
        "unet": _open(parts["unet"], _denoiser, dtype),
        "scheduler": _open(parts["scheduler"], _scheduler, dtype),
        **load_text_parts(parts["text_encoder"], parts["tokenizer"], dtype),
        "scorer": _open(parts["scorer"], _scorer, torch.float32) if parts["scorer"] else None,
    }


def load_text_parts(text_encoder: Path | None, tokenizer: Path | None, dtype: torch.dtype) -> dict[str, Any]:
    """Text encoder and tokenizer of two folders; both None where there are none."""
    if text_encoder is None or tokenizer is None:
        return {"text_encoder": None, "tokenizer": None}
    return {
        "text_encoder": _open(text_encoder, _text_encoder, dtype),
        "tokenizer": _open(tokenizer, _tokenizer, dtype),
    }


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn what the libraries raise over a damaged component into one typed sentence."""
    try:
        yield
    except (TregMedError, MemoryError):
        raise
    except ImportError as error:
        raise ResourceError(f"expected the packages that {what} needs, got: {error}; install them") from error
    except Exception as error:  # the tokenizers raise nothing narrower
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(
            f"expected a readable component in {what} of the prior, got: {first}; copy the prior again"
        ) from error


def _open(folder: Path | None, load: Callable[[Path, torch.dtype], Any], dtype: torch.dtype) -> Any:
    if folder is None:
        raise ResourceError("expected a folder of a component, got none")
    with readable(f"{folder.name}/"):
        return load(folder, dtype)


def _autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    from treg_med.priors.autoencoder import NullSpaceAutoencoder

    name = _class_name(folder, AUTOENCODERS)
    cls = NullSpaceAutoencoder if name == "NullSpaceAutoencoder" else getattr(diffusers, name)
    vae = _from_pretrained(cls, folder, torch_dtype=dtype)
    # Stable Diffusion's autoencoder overflows in half precision, and its configuration says so.
    return vae.to(torch.float32) if dtype == torch.float16 and vae.config.get("force_upcast") else vae


def load_denoiser(folder: Path, dtype: torch.dtype) -> Any:
    """Denoiser of its folder."""
    return _open(folder, _denoiser, dtype)


def _denoiser(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    from treg_med.priors.word_map_unet import WordMapUNet

    name = _class_name(folder, DENOISERS)
    cls = WordMapUNet if name == "WordMapUNet" else getattr(diffusers, name)
    return _from_pretrained(cls, folder, torch_dtype=dtype)


def _scheduler(folder: Path, dtype: torch.dtype) -> Any:
    return load_schedule(folder)


def _scorer(folder: Path, dtype: torch.dtype) -> Any:
    from treg_med.priors.image_text_scorer import ImageTextScorer

    _class_name(folder, SCORERS)
    return _from_pretrained(ImageTextScorer, folder, torch_dtype=dtype).eval().requires_grad_(False)


def _text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModel

    kind = str(read_json(folder / "config.json").get("model_type", ""))
    if kind.startswith("clip"):
        # Reads the text half where the folder holds a whole CLIP.
        config, cls = CLIPTextConfig.from_pretrained(folder, local_files_only=True), CLIPTextModel
    else:
        config, cls = AutoConfig.from_pretrained(folder, local_files_only=True), AutoModel
    return _from_pretrained(cls, folder, config=config, dtype=dtype)


def _tokenizer(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _from_pretrained(cls: Any, folder: Path, **keywords: Any) -> Any:
    """Open a component whose weights are all there: the libraries fill a gap with random numbers."""
    with _quiet():
        model, info = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=component_variant(folder),
            output_loading_info=True,
            **keywords,
        )
    # The states come from before the pooling layer, which an encoder may lack.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise FormatError(
            f"expected all weights of {cls.__name__} in {folder.name}/, got none for {missing[0]} "
            f"({len(missing)} in all); copy the prior again"
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' loading reports and bars off the terminal; what matters in them is an error here."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = [diffusers.utils.logging, transformers.utils.logging]
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bar) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


def _class_name(folder: Path, known: tuple[str, ...]) -> str:
    """Class of a diffusers component, which has to be one of the known ones: none is looked up by its name alone."""
    name = str(read_json(folder / "config.json").get("_class_name", ""))
    if name not in known:
        raise ConfigError(
            f"expected _class_name {', '.join(known)} in {folder.name}/config.json, got {name or 'none'!r}; "
            "other components are not supported"
        )
    return name

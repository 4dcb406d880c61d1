"""Which weight files of a component are read, and whether they can be: safetensors only, whole, none missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from treg_med.data.atomic import writing
from treg_med.errors import FormatError, ResourceError, UnsafeFileError

__all__ = ["check_file", "component_variant", "is_pickled", "pickled_error", "save_component"]

_PICKLED = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}
_FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?P<shard>-\d+-of-\d+)?\.safetensors"
)
_INDEX = re.compile(r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")


def component_variant(folder: Path) -> str | None:
    """Variant of a component's weights to open, after every file of it was checked; None is the plain one.

    The plain files come before ``fp16``, and that before any other variant.

    Raises
    ------
    UnsafeFileError
        If there are only pickled weights, or an index names a file elsewhere.
    ResourceError
        If weights or a shard are missing.
    FormatError
        If a file or index cannot be read.
    """
    files = {path: match for path in sorted(folder.iterdir()) if (match := _FILE.fullmatch(path.name))}
    indices = {path: match for path in sorted(folder.iterdir()) if (match := _INDEX.fullmatch(path.name))}
    variants = {match["variant"] for match in (*files.values(), *indices.values())}
    if not variants:
        raise _no_weights(folder)
    variant: str | None = min(variants, key=lambda name: (name is not None, name != "fp16", name or ""))
    index = next((path for path, match in indices.items() if match["variant"] == variant), None)
    whole = [path for path, match in files.items() if match["variant"] == variant and not match["shard"]]
    if not whole and index is not None:
        whole = _shards(folder, index)
    if not whole:
        shard = next(path for path, match in files.items() if match["variant"] == variant)
        raise ResourceError(
            f"expected the index of the shards in {folder.name}/ (*.safetensors.index.json), got {shard.name} without "
            "one; copy the prior again"
        )
    for path in whole:
        check_file(path)
    return variant


def check_file(path: Path) -> tuple[str, ...]:
    """Names of the tensors of a safetensors file whose header and length are right.

    Raises
    ------
    FormatError
        If the file is cut, empty or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return tuple(opened.keys())
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"expected a whole safetensors file, got {path.parent.name}/{path.name}, which is cut or damaged "
            f"({error}); copy the prior again"
        ) from error


def is_pickled(path: Path) -> bool:
    """Whether a file's name says that its weights would have to be unpickled."""
    return path.suffix.lower() in _PICKLED


def pickled_error(path: Path) -> UnsafeFileError:
    """Error for weights that only unpickling could read, with the way out.

    The conversion, on a machine and from a source that you trust::

        import torch, safetensors.torch as st
        weights = torch.load("model.pt", map_location="cpu", weights_only=True)
        st.save_file({k: v.contiguous().clone() for k, v in weights.items()}, "model.safetensors", {"format": "pt"})
    """
    return UnsafeFileError(
        f"expected safetensors in {path.parent.name}/, got only {path.name}, which would have to be unpickled and "
        "could run code; convert it to safetensors once, with the three lines under \"Bring your own prior\" in the "
        "README"
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"expected a weight_map in {folder.name}/{index.name}, got an unreadable file ({error}); "
            "copy the prior again"
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or is_pickled(Path(name)):
            raise UnsafeFileError(
                f"expected safetensors files of {folder.name}/ in {index.name}, got {name!r}; "
                "convert the weights to safetensors and copy the prior again"
            )
        if not (folder / name).is_file():
            raise ResourceError(
                f"expected the shard {name} in {folder.name}/, as {index.name} lists it, got none; copy the prior again"
            )
    return [folder / name for name in names]


def _no_weights(folder: Path) -> Exception:
    other = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    if other:
        return FormatError(
            "expected weights called diffusion_pytorch_model.safetensors (vae, unet) or model.safetensors (text "
            f"encoder) in {folder.name}/, got {other[0].name}; rename the file"
        )
    pickled = next((path for path in sorted(folder.iterdir()) if is_pickled(path)), None)
    if pickled is not None:
        return pickled_error(pickled)
    return ResourceError(f"expected safetensors in {folder.name}/, got no weights; copy the prior again")


def save_component(module: Any, folder: Path, **options: Any) -> None:
    """Save a component as safetensors without the place it was opened from, which may name a person or a machine.

    Parameters
    ----------
    module
        Of diffusers or transformers.
    folder : Path
        Component folder to write.
    options
        Of ``save_pretrained``.

    Raises
    ------
    ResourceError
        If the disk is full or failed.
    """
    with writing(f"writing {folder.name!r}"):
        module.save_pretrained(folder, safe_serialization=True, **options)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

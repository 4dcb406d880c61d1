"""What is installed beside the package, read from metadata without importing any of it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["installed_version", "torchvision_warning"]


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def torchvision_warning() -> str | None:
    """Return one line when the installed torchvision was built for another torch, else None.

    Such a torchvision stops diffusers and transformers from importing; without any torchvision both work. The
    requirement in its metadata names the release of torch; the build (CPU or CUDA) is the local part of both
    versions.
    """
    vision, torch_version = installed_version("torchvision"), installed_version("torch")
    if vision is None or torch_version is None:
        return None
    pins = (re.match(r"torch\s*\(?==\s*([\w.]+)", entry) for entry in requires("torchvision") or ())
    wanted = next((pin[1] for pin in pins if pin), None)
    release, _, build = torch_version.partition("+")
    if wanted in (None, release) and vision.partition("+")[2] == build:
        return None
    return (
        f"torchvision {vision} was not built for torch {torch_version} and can stop diffusers and "
        "transformers from importing; treg-med does not need it: pip uninstall torchvision"
    )

"""Scans that ship with the package; licences and origin are in ``samples/NOTICE``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from treg_med.errors import ConfigError, ResourceError

__all__ = ["SAMPLES", "sample_path"]

#: Names accepted by `sample_path`.
SAMPLES = ("brain_8ch_poisson", "htc2022_disc")


def sample_path(name: str = "brain_8ch_poisson") -> Path:
    """Return the path of a shipped scan.

    ``brain_8ch_poisson``: one measured axial T1-weighted brain slice, 8 coils, 230 x 180, variable-density
    Poisson-disc sampling, 8.0 times undersampled, no reference image.
    ``htc2022_disc``: one measured fan-beam CT scan of an acrylic disc with four holes, 60 views over a full circle,
    with the reference reconstruction and segmentation of the complete scan at 256 x 256; no medical prior applies.

    Raises
    ------
    ConfigError
        For an unknown name.
    ResourceError
        If the installation lacks the file.
    """
    if name not in SAMPLES:
        raise ConfigError(f"expected a sample out of {', '.join(SAMPLES)}, got {name!r}")
    path = Path(str(resources.files("treg_med.data").joinpath("samples", f"{name}.h5")))
    if not path.is_file():
        raise ResourceError(
            f"expected the shipped scan {path.name!r} in the installed package; reinstall treg-med"
        )
    return path

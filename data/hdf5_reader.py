"""What the HDF5 readers share: a handle that survives a fork, checked reads, retrospective undersampling."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from treg_med.data.safe_hdf5 import check_fits_memory, hdf5_errors, open_hdf5
from treg_med.data.sampling import MASK_KINDS, child_generator, make_mask
from treg_med.data.source import ScanReader
from treg_med.errors import ConfigError, FormatError
from treg_med.operators import centered_ifft2

__all__ = [
    "Hdf5File",
    "Hdf5Reader",
    "Undersampling",
    "check_kspace",
    "number_attribute",
    "reference_image",
    "single_precision",
    "text_attribute",
]


class Hdf5File:
    """One HDF5 file, opened read-only after the safety walk of `open_hdf5` when it is first read."""

    path: Path

    def __init__(self, path: Path) -> None:
        # Absolute, so that a worker with another working folder finds the file.
        self.path = Path(path).absolute()
        self._file: h5py.File | None = None
        self._owner = -1

    def _h5(self) -> h5py.File:
        # An HDF5 handle must not be shared across a fork: each process opens its own.
        if self._file is None or self._owner != os.getpid():
            self._file, self._owner = open_hdf5(self.path), os.getpid()
        return self._file

    def close(self) -> None:
        """Close the file."""
        if self._file is not None and self._owner == os.getpid():
            self._file.close()
        self._file = None

    def _dataset(self, name: str) -> h5py.Dataset:
        item = self._h5().get(name)
        if not isinstance(item, h5py.Dataset):
            raise FormatError(
                f"expected {name!r} to be a dataset, got {type(item).__name__} in {self.path.name!r}"
            )
        return item

    def _optional(self, name: str) -> h5py.Dataset | None:
        return self._dataset(name) if name in self._h5() else None

    def _read(self, dataset: h5py.Dataset, index: int | None = None) -> Tensor:
        """Return a whole dataset, or one entry along its first axis, as a tensor in native byte order."""
        if dataset.dtype.kind not in "biufc":
            raise FormatError(
                f"expected {dataset.name} to hold numbers, got {dataset.dtype}; store it as float32 or uint8"
            )
        count = dataset.size if index is None else dataset.size // max(1, dataset.shape[0])
        check_fits_memory(dataset.name, int(count) * dataset.dtype.itemsize)
        with hdf5_errors(self.path.name):
            values = np.asarray(dataset[()] if index is None else dataset[index])
            return torch.from_numpy(
                np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
            )


class Hdf5Reader(Hdf5File, ScanReader):
    """A `ScanReader` on one `Hdf5File`."""

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        ScanReader.__init__(self, path, options)
        Hdf5File.__init__(self, path)

    def close(self) -> None:
        """Close the file; later reads raise `ResourceError`."""
        ScanReader.close(self)
        Hdf5File.close(self)


def check_kspace(dataset: h5py.Dataset, dimensions: Mapping[int, str]) -> None:
    """Refuse k-space that is not complex, has the wrong number of axes or is empty.

    Raises
    ------
    FormatError
        States the layouts that are read.
    """
    layouts = " or ".join(dimensions.values())
    if dataset.dtype.kind != "c":
        hint = (
            "combine its last axis: k[..., 0] + 1j * k[..., 1]"
            if dataset.shape[-1:] == (2,)
            else "store complex64"
        )
        raise FormatError(f"expected complex k-space, got {dataset.dtype} of shape {dataset.shape}; {hint}")
    if dataset.shape is None or dataset.ndim not in dimensions:
        raise FormatError(f"expected k-space {layouts}, got shape {dataset.shape}")
    if 0 in dataset.shape:
        raise FormatError(f"expected k-space with samples in it, got the empty shape {dataset.shape}")


def text_attribute(attributes: h5py.AttributeManager, name: str) -> str | None:
    """Return a text attribute, or None if it is missing or something else."""
    value = attributes.get(name)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def number_attribute(attributes: h5py.AttributeManager, name: str) -> float | None:
    """Return a finite numeric attribute, or None if it is missing.

    Raises
    ------
    FormatError
        If it is there but is not one finite number.
    """
    if name not in attributes:
        return None
    try:
        value = float(np.asarray(attributes[name]).item())
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"expected the attribute {name!r} to be one number, got {attributes[name]!r}"
        ) from error
    if not np.isfinite(value):
        raise FormatError(f"expected the attribute {name!r} to be finite, got {value}")
    return value


def reference_image(kspace: Tensor) -> Tensor:
    """Return the image of complete (coils, H, W) k-space: complex for one coil, else root sum of squares."""
    images = centered_ifft2(kspace)
    return images[0] if images.shape[0] == 1 else torch.linalg.vector_norm(images, dim=0)


def single_precision(values: Tensor) -> Tensor:
    """Return real or complex numbers as float32 or complex64."""
    return values.to(torch.complex64 if values.is_complex() else torch.float32)


@dataclass(frozen=True)
class Undersampling:
    """Leaving out samples of a fully sampled scan on purpose, the same ones in every slice.

    Parameters
    ----------
    acceleration
        Factor asked for; None leaves the data as they are.
    mask
        Name of the pattern.
    seed
        Seed of the pattern.

    Raises
    ------
    ConfigError
        For an unknown pattern.
    """

    acceleration: float | None = None
    mask: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mask not in MASK_KINDS:
            raise ConfigError(f"expected a mask out of {', '.join(MASK_KINDS)}, got {self.mask!r}")

    def reduce(self, acquired: Tensor, *, complete: bool) -> Tensor:
        """Return the (H, W) mask that is left of the acquired one.

        Raises
        ------
        ConfigError
            If the scan is already undersampled.
        """
        if self.acceleration is None:
            return acquired
        if not complete:
            share = acquired.numel() / max(1, int(acquired.sum()))
            raise ConfigError(
                "expected a fully sampled scan to undersample, but this one is already undersampled "
                f"{share:.2f} times; "
                "leave out acceleration"
            )
        shape = (acquired.shape[0], acquired.shape[1])
        return (
            make_mask(self.mask, shape, self.acceleration, child_generator(self.seed, "mask")).mask & acquired
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return what was done, for header and provenance."""
        if self.acceleration is None:
            return []
        facts = {"acceleration": float(self.acceleration), "mask": self.mask, "seed": self.seed}
        return [{"operation": "retrospective undersampling", **facts}]

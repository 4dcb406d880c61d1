"""The file formats of training scans behind one MONAI reader that trusts none of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from monai.data import ImageReader
from PIL import Image, UnidentifiedImageError

from treg_med.data.hdf5_reader import number_attribute
from treg_med.data.nifti import NiftiVolume, looks_like_nifti
from treg_med.data.orientation import unknown_geometry
from treg_med.data.safe_hdf5 import HDF5_SIGNATURE, check_fits_memory, check_readable_file, hdf5_errors, open_hdf5
from treg_med.errors import ConfigError, FormatError, NumericsError, UnsafeFileError

__all__ = ["TrainingScanReader"]

_HEAD = 64 * 1024
_DATASETS = ("images", "volume", "reconstruction_rss", "reconstruction_esc")
_PICTURES = ("PNG", "JPEG", "TIFF", "BMP")


class TrainingScanReader(ImageReader):
    """Reads NIfTI volumes, HDF5 stacks and pictures for `monai.transforms.LoadImaged`, by content.

    The array is float32: a stored volume (i, j, k) with its ``affine``, or upright slices (slice, H, W), then
    ``is_stack``. HDF5 holds them as ``images``, ``volume``, ``reconstruction_rss`` or ``reconstruction_esc``, with the
    optional attributes ``pixel_spacing_mm``, ``display_rot90`` and ``display_flip`` (as in `Geometry`; reconstructions
    of fastMRI lie upside down and are turned without).

    Raises
    ------
    ResourceError, FormatError, GeometryError, NumericsError, UnsafeFileError
        As the readers of `treg_med.data` do.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Accept every name: the content decides."""
        return True

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Path:
        """Return the path only.

        `LoadImage` takes an error in here as a hint to try its other readers, which check less than ours.
        """
        first: Any = data[0] if isinstance(data, list | tuple) else data
        return Path(first)

    def get_data(self, img: Any) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Read the file; return values and ``affine``, ``is_stack``, ``known`` and ``pixel_spacing_mm``."""
        path = check_readable_file(img)
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        facts: dict[str, Any] = {
            "affine": np.eye(4), "is_stack": True, "known": False, "pixel_spacing_mm": float("nan"),
        }  # fmt: skip
        if looks_like_nifti(head):
            values, found = _nifti(path)
        elif head.startswith(HDF5_SIGNATURE):
            values, found = _hdf5(path)
        else:
            values, found = _picture(path), {}
        return values, facts | found


def _nifti(path: Path) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    try:
        volume = NiftiVolume.read(path)
    except ConfigError as error:
        raise FormatError(f"expected one volume, got several in a 4-D file; save each to a file ({error})") from error
    known = volume.sform_code > 0 or volume.qform_code > 0
    return volume.values, {"affine": volume.affine, "is_stack": False, "known": known}


def _hdf5(path: Path) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    with open_hdf5(path) as file, hdf5_errors(path.name):
        name = next((n for n in _DATASETS if isinstance(file.get(n), h5py.Dataset)), None)
        if name is None:
            found = ", ".join(list(file)[:8]) or "nothing"
            raise FormatError(f"expected a dataset {', '.join(_DATASETS)}, got {found}; rename it")
        dataset = file[name]
        if dataset.dtype.kind not in "iuf" or dataset.ndim not in (2, 3) or 0 in dataset.shape:
            raise FormatError(
                f"expected {name} (slice, H, W) or (H, W) in real numbers, got {dataset.shape} {dataset.dtype}; store "
                "the magnitude"
            )
        check_fits_memory(f"{name} as float32", 4 * dataset.size)
        values = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32)).reshape(-1, *dataset.shape[-2:])
        upside_down = name.startswith("reconstruction")
        turn, flip = number_attribute(file.attrs, "display_rot90"), number_attribute(file.attrs, "display_flip")
        rot90 = int(turn) if turn is not None else 2 * upside_down
        mirror = bool(flip) if flip is not None else upside_down and turn is None
        spacing = number_attribute(file.attrs, "pixel_spacing_mm")
    slices, rows, columns = values.shape
    geometry = unknown_geometry((rows, columns, slices), display_rot90=rot90, display_flip=mirror)
    upright = geometry.to_display(values).contiguous().numpy()
    _check_finite(upright)
    return upright, {"pixel_spacing_mm": spacing} if spacing is not None and spacing > 0 else {}


def _picture(path: Path) -> npt.NDArray[np.float32]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_PICTURES) as picture:
                grey = picture if picture.mode in ("L", "I", "F", "I;16", "I;16B") else picture.convert("L")
                values = np.asarray(grey, dtype=np.float32)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnsafeFileError(f"expected one slice, got a picture of too many pixels ({error}); crop it") from error
    except UnidentifiedImageError as error:
        raise FormatError("expected NIfTI, HDF5, PNG, JPEG, TIFF or BMP, got something else; convert it") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise FormatError(f"expected a complete picture, got a damaged one ({error}); export it again") from error
    _check_finite(values)
    return values[None]


def _check_finite(values: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise NumericsError("expected finite values, got NaN or Inf; replace them, for example by 0")

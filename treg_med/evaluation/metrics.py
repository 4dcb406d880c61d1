"""Reference metrics of image fidelity, in double precision whatever the images are stored in.

Every function takes ``prediction`` and ``target`` of shape (n, H, W) and returns one float64 number per image, (n,).
None of them chooses a data range: that is what a protocol is for (`treg_med.evaluation.protocols`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from treg_med.errors import ConfigError, GeometryError

__all__ = [
    "SSIM_SIDES",
    "Array",
    "Images",
    "Mask",
    "Range",
    "Window",
    "absolute_error",
    "as_ranges",
    "check_pair",
    "decibels",
    "nmse",
    "psnr",
    "squared_error",
    "ssim",
]

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Range = float | npt.ArrayLike
Window = Literal["uniform", "gaussian"]

#: Side of the window of each kind of SSIM, in pixels; smaller images have none.
SSIM_SIDES: dict[str, int] = {"uniform": 7, "gaussian": 11}
_WINDOWS: dict[str, dict[str, object]] = {
    "uniform": {"win_size": 7},
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}


def check_pair(prediction: Images, target: Images, mask: Mask | None = None, *, side: int = 1) -> None:
    """Refuse what cannot be compared.

    Raises
    ------
    GeometryError
        If the shapes are not one and the same (n, H, W), or an image is smaller than ``side`` pixels.
    """
    if target.ndim != 3 or prediction.shape != target.shape:
        raise GeometryError(
            f"expected prediction and target of one shape (slices, H, W), got {prediction.shape} and {target.shape}; "
            "add an axis to a single image, crop or resample the prediction to the grid of the target"
        )
    if 0 in target.shape or min(target.shape[1:]) < side:
        raise GeometryError(f"expected images of at least {side} x {side} pixels, got shape {target.shape}")
    if mask is not None and mask.shape != target.shape:
        raise GeometryError(f"expected a mask of shape {target.shape}, got {mask.shape}; one value per pixel")


def as_ranges(data_range: Range, count: int) -> Array:
    """Return one data range per image.

    Raises
    ------
    ConfigError
        If there is neither one for all nor one for each, or one is not positive.
    """
    ranges = np.asarray(data_range, dtype=np.float64)
    if ranges.shape not in ((), (1,), (count,)) or not (ranges > 0).all():
        raise ConfigError(f"expected one positive data range, or one per image ({count}), got {data_range!r}")
    return np.broadcast_to(ranges, (count,))


def _pairs(prediction: Images, target: Images, mask: Mask | None) -> Iterator[tuple[Array, Array]]:
    """Give the pixels of each image as float64, those inside the mask if there is one."""
    check_pair(prediction, target, mask)
    for index in range(len(target)):
        chosen = ... if mask is None else mask[index]
        yield prediction[index][chosen].astype(np.float64), target[index][chosen].astype(np.float64)


def squared_error(prediction: Images, target: Images, mask: Mask | None = None) -> Array:
    r"""Return :math:`\sum_{p \in M} (\hat x_p - x_p)^2`, 0 for an empty mask."""
    return np.array([np.sum((p - t) ** 2) for p, t in _pairs(prediction, target, mask)])


def absolute_error(prediction: Images, target: Images, mask: Mask | None = None) -> Array:
    r"""Return :math:`\sum_{p \in M} |\hat x_p - x_p|`, 0 for an empty mask."""
    return np.array([np.sum(np.abs(p - t)) for p, t in _pairs(prediction, target, mask)])


def decibels(mean_squared_error: npt.ArrayLike, data_range: npt.ArrayLike) -> Array:
    r"""Return :math:`10 \log_{10} (R^2 / \mathrm{MSE})`; Inf where there is no error."""
    with np.errstate(divide="ignore"):
        power = np.square(np.asarray(data_range, dtype=np.float64))
        return np.asarray(10 * np.log10(np.divide(power, mean_squared_error)))


def psnr(prediction: Images, target: Images, data_range: Range, mask: Mask | None = None) -> Array:
    r"""Return the peak signal-to-noise ratio in dB.

    .. math:: 10 \log_{10} \frac{R^2}{|M|^{-1} \sum_{p \in M} (\hat x_p - x_p)^2}

    Parameters
    ----------
    prediction, target
        (n, H, W), real, in one unit.
    data_range
        R, one for all images or (n,).
    mask
        M, (n, H, W); default: the whole image. NaN where it is empty.

    Raises
    ------
    GeometryError
        If the shapes differ.
    ConfigError
        If a data range is not positive.
    """
    errors = squared_error(prediction, target, mask)
    with np.errstate(invalid="ignore"):
        return decibels(errors / _pixels(target, mask), as_ranges(data_range, len(target)))


def nmse(prediction: Images, target: Images, mask: Mask | None = None) -> Array:
    r"""Return the normalised mean squared error.

    .. math:: \frac{\sum_{p \in M} (\hat x_p - x_p)^2}{\sum_{p \in M} x_p^2}

    Parameters
    ----------
    prediction, target
        (n, H, W), real, in one unit whose zero means no signal (not HU).
    mask
        M, (n, H, W); default: the whole image. NaN where the target is 0 in it.

    Raises
    ------
    GeometryError
        If the shapes differ.
    """
    energy = squared_error(np.zeros_like(target), target, mask)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(energy > 0, squared_error(prediction, target, mask) / energy, np.nan)


def ssim(
    prediction: Images, target: Images, data_range: Range, *, window: Window = "uniform", mask: Mask | None = None
) -> Array:
    r"""Return the structural similarity of scikit-image.

    .. math:: \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
              {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}, \quad c_1 = (0.01 R)^2,\ c_2 = (0.03 R)^2

    averaged over the pixels whose window lies inside the image.

    Parameters
    ----------
    prediction, target
        (n, H, W), real, in one unit.
    data_range
        R, one for all images or (n,).
    window
        ``"uniform"``: 7 x 7 with sample covariances, the default of scikit-image and fastMRI. ``"gaussian"``: 11 x 11,
        sigma 1.5, population covariances, as in the paper and in MONAI.
    mask
        (n, H, W); the average is over these pixels only. NaN where none has a whole window.

    Raises
    ------
    GeometryError
        If the shapes differ or an image is smaller than the window.
    ConfigError
        If a data range is not positive or the window is unknown.

    Notes
    -----
    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE Trans. Image Processing 13 (2004) 600.
    """
    if window not in _WINDOWS:
        raise ConfigError(f"expected window 'uniform' or 'gaussian', got {window!r}")
    side = SSIM_SIDES[window]
    check_pair(prediction, target, mask, side=side)
    inside = slice(side // 2, -(side // 2))
    values = np.empty(len(target))
    for index, peak in enumerate(as_ranges(data_range, len(target))):
        mean, similarity = structural_similarity(
            target[index].astype(np.float64),
            prediction[index].astype(np.float64),
            data_range=float(peak),
            full=True,
            **_WINDOWS[window],
        )
        values[index] = mean if mask is None else _mean(similarity[inside, inside], mask[index][inside, inside])
    return values


def _pixels(target: Images, mask: Mask | None) -> npt.NDArray[np.int64]:
    if mask is None:
        return np.full(len(target), target[0].size, dtype=np.int64)
    return np.count_nonzero(mask, axis=(1, 2)).astype(np.int64)


def _mean(values: Array, mask: Mask) -> float:
    return float(values[mask].mean()) if mask.any() else float("nan")

"""Reference perceptual metrics without learned weights: MS-SSIM and HaarPSI.

Both take ``prediction`` and ``target`` (n, H, W) and return one float64 number per image, (n,).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity

from treg_med.evaluation.metrics import Array, Images, Range, as_ranges, check_pair

__all__ = [
    "HAARPSI_ALPHA",
    "HAARPSI_C",
    "HAARPSI_SIDE",
    "MS_SSIM_SIDE",
    "MS_SSIM_WEIGHTS",
    "haarpsi",
    "ms_ssim",
]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Smallest side, in pixels, that is still 11 pixels wide after four halvings that round up.
MS_SSIM_SIDE = 161
HAARPSI_C = 30.0
HAARPSI_ALPHA = 4.2
#: Smallest side, in pixels, in which the coarsest wavelet (8 pixels, after one halving) fits.
HAARPSI_SIDE = 16
_BATCH_PIXELS = 2**20
# Of a data range of 1, which images are brought to first.
_C2 = 0.03**2


def ms_ssim(prediction: Images, target: Images, data_range: Range) -> Array:
    r"""Return the multi-scale structural similarity over five scales.

    .. math:: \mathrm{SSIM}_5^{w_5} \prod_{j=1}^{4} \mathrm{CS}_j^{w_j}, \quad
              \mathrm{CS} = \frac{2 \sigma_{xy} + c_2}{\sigma_x^2 + \sigma_y^2 + c_2}

    with means over each scale, an 11 x 11 Gaussian window of sigma 1.5, and 2 x 2 averaging between scales, as in
    the authors' program. A negative mean, which has no real power, counts as 0.

    Fewer scales would give another metric under the same name, so small images have none.

    Parameters
    ----------
    prediction, target
        (n, H, W), real, in one unit, both sides at least `MS_SSIM_SIDE` pixels.
    data_range
        R, one for all images or (n,).

    Raises
    ------
    GeometryError
        If the shapes differ or an image is too small for five scales.
    ConfigError
        If a data range is not positive.

    Notes
    -----
    Wang, Simoncelli, Bovik: Multiscale structural similarity for image quality assessment, Asilomar 2003.
    """
    check_pair(prediction, target, side=MS_SSIM_SIDE)
    values = np.empty(len(target))
    for index, peak in enumerate(as_ranges(data_range, len(target))):
        x, y = target[index] / peak, prediction[index] / peak
        similarity = 1.0
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            if scale:
                x, y = _halved(x), _halved(y)
            coarsest = scale == len(MS_SSIM_WEIGHTS) - 1
            mean = _luminance_and_contrast(x, y) if coarsest else _contrast(x, y)
            similarity *= max(mean, 0.0) ** weight
        values[index] = similarity
    return values


def _luminance_and_contrast(x: Array, y: Array) -> float:
    return float(
        structural_similarity(x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    )


def _contrast(x: Array, y: Array) -> float:
    """Return the mean of the contrast and structure term alone, over whole windows."""

    def smoothed(image: Array) -> Array:
        return np.asarray(ndimage.gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5])

    mean_x, mean_y = smoothed(x), smoothed(y)
    variances = smoothed(x * x) - mean_x**2 + smoothed(y * y) - mean_y**2
    covariance = smoothed(x * y) - mean_x * mean_y
    return float(np.mean((2 * covariance + _C2) / (variances + _C2)))


def _halved(image: Array) -> Array:
    """Average blocks of 2 x 2; an odd last row or column is counted twice."""
    even = np.pad(image, [(0, side % 2) for side in image.shape], mode="edge")
    return np.asarray(even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3)))


def haarpsi(prediction: Images, target: Images, data_range: Range) -> Array:
    r"""Return the Haar wavelet-based perceptual similarity index of grey images.

    With :math:`g^{(k)}_j` the response to the Haar filter of scale :math:`j` and orientation :math:`k`, after one
    halving of the image,

    .. math:: \ell_\alpha^{-1}\!\left( \frac{\sum_{k, p} \ell_\alpha(s^{(k)}_p)\, w^{(k)}_p}{\sum_{k, p} w^{(k)}_p}
              \right)^{\!2}, \quad
              s^{(k)} = \frac12 \sum_{j=1}^{2}
              \frac{2 |g^{(k)}_j(x)|\,|g^{(k)}_j(y)| + C}{g^{(k)}_j(x)^2 + g^{(k)}_j(y)^2 + C}, \quad
              w^{(k)} = \max(|g^{(k)}_3(x)|, |g^{(k)}_3(y)|)

    where :math:`\ell_\alpha` is the logistic function of slope :math:`\alpha = 4.2`, and C = 30 for grey values of 0
    to 255. 1 means no perceived difference; the index is symmetric.

    Parameters
    ----------
    prediction, target
        (n, H, W), real, in one unit, 0 for black, both sides at least `HAARPSI_SIDE` pixels.
    data_range
        The value shown as 255, one for all images or (n,).

    Raises
    ------
    GeometryError
        If the shapes differ or an image is too small.
    ConfigError
        If a data range is not positive.

    Notes
    -----
    Reisenhofer, Bosse, Kutyniok, Wiegand: A Haar wavelet-based perceptual similarity index for image quality
    assessment, Signal Processing: Image Communication 61 (2018) 33.
    """
    check_pair(prediction, target, side=HAARPSI_SIDE)
    scales = (255 / as_ranges(data_range, len(target)))[:, None, None]
    size = max(1, _BATCH_PIXELS // target[0].size)
    batches = [slice(start, start + size) for start in range(0, len(target), size)]
    return np.concatenate([_haarpsi(target[b] * scales[b], prediction[b] * scales[b]) for b in batches])


def _haarpsi(x: Array, y: Array) -> Array:
    x, y = _seen_from_afar(x), _seen_from_afar(y)
    weighted, total = np.zeros(len(x)), np.zeros(len(x))
    for axis in (1, 2):
        fine, middle, coarse = ((_haar(x, scale, axis), _haar(y, scale, axis)) for scale in (1, 2, 3))
        similarity = (_similarity(*fine) + _similarity(*middle)) / 2
        weight = np.maximum(*coarse)
        weighted += np.sum(weight / (1 + np.exp(-HAARPSI_ALPHA * similarity)), axis=(1, 2))
        total += np.sum(weight, axis=(1, 2))
    # Where neither image shows anything they look the same.
    share = np.divide(weighted, total, out=np.full(len(x), 1 / (1 + np.exp(-HAARPSI_ALPHA))), where=total > 0)
    return np.asarray((np.log(share / (1 - share)) / HAARPSI_ALPHA) ** 2)


def _seen_from_afar(images: Array) -> Array:
    """Average 2 x 2 neighbours, zero beyond the image, and keep every second pixel."""
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1)))
    rows = padded[:, :-1:2] + padded[:, 1::2]
    return np.asarray((rows[:, :, :-1:2] + rows[:, :, 1::2]) / 4)


def _haar(images: Array, scale: int, axis: int) -> Array:
    """Return the magnitude of the Haar response across ``axis`` (1 or 2), zero beyond the image."""
    side = 2**scale
    box = np.ones(side)
    step = np.concatenate([np.ones(side // 2), -np.ones(side // 2)])
    # Windows reach one pixel farther ahead than behind, like those of the authors.
    across = ndimage.correlate1d(images, step, axis=axis, mode="constant", origin=-1)
    return np.abs(ndimage.correlate1d(across, box, axis=3 - axis, mode="constant", origin=-1)) / side


def _similarity(a: Array, b: Array) -> Array:
    return np.asarray((2 * a * b + HAARPSI_C) / (a * a + b * b + HAARPSI_C))

"""Reference metrics against closed forms, published programs restated, and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

from treg_med.errors import ConfigError, GeometryError
from treg_med.evaluation import metrics, perceptual


def _images(seed: int, shape: tuple[int, int, int] = (3, 40, 33)) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    target = np.abs(gaussian_filter(draw.standard_normal(shape), (0, 2, 2)))
    return target + 0.05 * target.max() * draw.standard_normal(shape), target


def test_errors_by_hand() -> None:
    target = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    prediction = target + np.array([[[0.0, 1.0], [-2.0, 0.0]]])
    mask = np.array([[[False, True], [True, False]]])
    assert metrics.squared_error(prediction, target) == [5.0]
    assert metrics.absolute_error(prediction, target, mask) == [3.0]
    assert metrics.nmse(prediction, target) == pytest.approx(5 / 30)
    assert metrics.nmse(prediction, target, mask) == pytest.approx(5 / 13)
    assert metrics.psnr(prediction, target, 4.0) == pytest.approx(10 * math.log10(16 / 1.25))
    assert metrics.psnr(prediction, target, 4.0, mask) == pytest.approx(10 * math.log10(16 / 2.5))
    assert metrics.psnr(target, target, 4.0) == math.inf
    assert np.isnan(metrics.nmse(target, np.zeros_like(target)))
    assert np.isnan(metrics.psnr(prediction, target, 4.0, np.zeros_like(mask)))


def test_single_precision_images_are_measured_in_double_precision() -> None:
    # The sum of squares of raw MR data lies below the smallest single-precision number.
    target = np.full((1, 8, 8), 1e-24, np.float32)
    assert metrics.nmse(1.5 * target, target) == pytest.approx(0.25, rel=1e-6)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    x, y = np.full((1, 20, 20), 3.0), np.full((1, 20, 20), 5.0)
    c1 = (0.01 * 10) ** 2
    expected = (2 * 15 + c1) / (34 + c1)
    assert metrics.ssim(x, y, 10.0) == pytest.approx(expected)
    assert metrics.ssim(x, y, 10.0, window="gaussian") == pytest.approx(expected)


def test_ssim_in_a_mask_is_the_mean_of_the_map_where_windows_are_whole() -> None:
    prediction, target = _images(0)
    everywhere = np.ones(target.shape, bool)
    whole = metrics.ssim(prediction, target, 1.0)
    assert metrics.ssim(prediction, target, 1.0, mask=everywhere) == pytest.approx(whole)
    # One whole window in the middle is one value of the map: SSIM of that patch.
    pixel = np.zeros(target.shape, bool)
    pixel[:, 20, 16] = True
    patch = np.s_[:, 17:24, 13:20]
    expected = metrics.ssim(prediction[patch], target[patch], 1.0)
    assert metrics.ssim(prediction, target, 1.0, mask=pixel) == pytest.approx(expected)
    corner = np.zeros(target.shape, bool)
    corner[:, 0, 0] = True
    assert np.isnan(metrics.ssim(prediction, target, 1.0, mask=corner)).all()


def _gaussian_terms(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance, and contrast with structure, of images of range 1 over whole 11 x 11 windows."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    mx, my, xx, yy, xy = (convolve2d(v, window, mode="valid") for v in (x, y, x * x, y * y, x * y))
    luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
    return luminance, (2 * (xy - mx * my) + 9e-4) / (xx - mx**2 + yy - my**2 + 9e-4)


def test_gaussian_ssim_restated_with_convolutions() -> None:
    prediction, target = _images(1)
    peak = float(target.max())
    pairs = zip(target / peak, prediction / peak, strict=True)
    expected = [np.prod(_gaussian_terms(x, y), axis=0).mean() for x, y in pairs]
    assert metrics.ssim(prediction, target, peak, window="gaussian") == pytest.approx(expected, abs=1e-12)


def test_ms_ssim_of_constants_is_the_luminance_of_the_coarsest_scale() -> None:
    side = perceptual.MS_SSIM_SIDE
    x, y = np.full((1, side, 190), 0.5), np.full((1, side, 190), 0.8)
    luminance = (2 * 0.4 + 1e-4) / (0.25 + 0.64 + 1e-4)
    assert perceptual.ms_ssim(x, y, 1.0) == pytest.approx(luminance**0.1333)
    assert sum(perceptual.MS_SSIM_WEIGHTS) == pytest.approx(1.0, abs=2e-4)


def test_ms_ssim_restated_with_convolutions() -> None:
    prediction, target = _images(2, (1, 176, 192))
    peak = target.max()
    x, y, product = target[0] / peak, prediction[0] / peak, 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        luminance, term = _gaussian_terms(x, y)
        if scale == 4:
            term = luminance * term
        product *= term.mean() ** weight
        x, y = (convolve2d(v, np.ones((2, 2)) / 4, mode="valid")[::2, ::2] for v in (x, y))
    assert perceptual.ms_ssim(prediction, target, peak) == pytest.approx(product, abs=1e-12)


def test_ms_ssim_of_opposite_contrast_is_zero_and_small_images_have_none() -> None:
    _, target = _images(3, (1, 170, 170))
    assert perceptual.ms_ssim(target.max() - target, target, target.max()) == 0
    with pytest.raises(GeometryError, match="at least 161 x 161 pixels"):
        perceptual.ms_ssim(target[:, :160], target[:, :160], 1.0)


@pytest.mark.parametrize(("a", "b"), [(0.0, 40.0), (200.0, 120.0), (90.0, 90.0)])
def test_haarpsi_of_two_points_by_hand(a: float, b: float) -> None:
    # A block of 2 x 2 becomes one pixel of the halved image; a filter of scale j answers with a / 2^j in the 4^j
    # windows that hold it, so that 4, 12 and 48 of the 64 weighted pixels see two, one and no scale differ.
    x, y = np.zeros((2, 1, 32, 32))
    x[0, 16:18, 14:16], y[0, 16:18, 14:16] = a, b
    fine, middle = ((2 * a * b / 4**j + 30) / ((a**2 + b**2) / 4**j + 30) for j in (1, 2))

    def logistic(value: float) -> float:
        return 1 / (1 + math.exp(-4.2 * value))

    share = (4 * logistic((fine + middle) / 2) + 12 * logistic((1 + middle) / 2) + 48 * logistic(1)) / 64
    expected = (math.log(share / (1 - share)) / 4.2) ** 2
    assert perceptual.haarpsi(x, y, 255.0) == pytest.approx(expected, rel=1e-12)
    assert perceptual.haarpsi(x / 1000, y / 1000, 0.255) == pytest.approx(expected, rel=1e-9)


def test_haarpsi_restated_as_the_authors_published_it() -> None:
    prediction, target = (255 * v[0] / 2 for v in _images(4, (1, 45, 38)))

    def same(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """Convolve as MATLAB does: even kernels reach one pixel farther ahead."""
        return np.rot90(convolve2d(np.rot90(image, 2), np.rot90(kernel, 2), mode="same"), 2)

    def responses(image: np.ndarray) -> list[list[np.ndarray]]:
        half = same(image, np.full((2, 2), 0.25))[::2, ::2]
        kernels = [np.repeat([-1.0, 1.0], 2 ** (j - 1))[:, None] * np.full(2**j, 2.0**-j) for j in (1, 2, 3)]
        return [[np.abs(same(half, kernel)) for kernel in family] for family in (kernels, [k.T for k in kernels])]

    above = below = 0.0
    for (x1, x2, x3), (y1, y2, y3) in zip(responses(target), responses(prediction), strict=True):
        local = ((2 * x1 * y1 + 30) / (x1**2 + y1**2 + 30) + (2 * x2 * y2 + 30) / (x2**2 + y2**2 + 30)) / 2
        weight = np.maximum(x3, y3)
        above, below = above + np.sum(weight / (1 + np.exp(-4.2 * local))), below + weight.sum()
    expected = (np.log(above / below / (1 - above / below)) / 4.2) ** 2
    assert perceptual.haarpsi(prediction[None], target[None], 255.0) == pytest.approx(expected, abs=1e-12)


def test_haarpsi_is_one_for_the_same_symmetric_and_falls_with_blur_and_noise() -> None:
    draw = np.random.default_rng(5)
    _, target = _images(5, (1, 64, 64))
    peak = target.max()
    noise = draw.standard_normal(target.shape) * peak
    assert perceptual.haarpsi(target, target, peak) == pytest.approx(1.0)
    assert perceptual.haarpsi(np.zeros((1, 16, 16)), np.zeros((1, 16, 16)), 1.0) == pytest.approx(1.0)
    other = target + 0.1 * noise
    assert perceptual.haarpsi(other, target, peak) == pytest.approx(perceptual.haarpsi(target, other, peak))
    noisy = [float(perceptual.haarpsi(target + s * noise, target, peak)[0]) for s in (0.01, 0.05, 0.2)]
    blurred = [float(perceptual.haarpsi(gaussian_filter(target, (0, s, s)), target, peak)[0]) for s in (0.5, 1.5, 4)]
    assert 1 > noisy[0] > noisy[1] > noisy[2] > 0
    assert 1 > blurred[0] > blurred[1] > blurred[2] > 0


def test_haarpsi_in_batches_is_that_of_single_images(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = _images(6, (5, 32, 32))
    whole = perceptual.haarpsi(prediction, target, 1.0)
    monkeypatch.setattr(perceptual, "_BATCH_PIXELS", 2 * 32 * 32)
    assert np.array_equal(perceptual.haarpsi(prediction, target, 1.0), whole)


def test_what_cannot_be_compared_is_refused() -> None:
    image = np.ones((2, 20, 20))
    with pytest.raises(GeometryError, match=r"\(2, 20, 20\) and \(2, 20, 21\)"):
        metrics.squared_error(image, np.ones((2, 20, 21)))
    with pytest.raises(GeometryError, match="add an axis"):
        metrics.ssim(image[0], image[0], 1.0)
    with pytest.raises(GeometryError, match="mask of shape"):
        metrics.squared_error(image, image, np.ones((20, 20), bool))
    with pytest.raises(GeometryError, match="at least 11 x 11"):
        metrics.ssim(image[:, :10], image[:, :10], 1.0, window="gaussian")
    with pytest.raises(GeometryError, match="at least 16 x 16"):
        perceptual.haarpsi(image[:, :15], image[:, :15], 1.0)
    with pytest.raises(ConfigError, match="positive data range"):
        metrics.psnr(image, image, 0.0)
    with pytest.raises(ConfigError, match="one per image"):
        metrics.ssim(image, image, [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="'boxcar'"):
        metrics.ssim(image, image, 1.0, window="boxcar")  # type: ignore[arg-type]

"""Classical denoisers of grey images with white noise, each with one weight to tune."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from treg_med.errors import NumericsError

__all__ = ["Denoiser", "block_matching", "non_local_means", "psnr", "total_variation", "tuned_weight"]

Image = npt.NDArray[np.float32]
#: (noisy image, weight in units of the noise, noise standard deviation) -> estimate.
Denoiser = Callable[[Image, float, float], Image]

_MOST_DOUBLINGS = 8
_GOLDEN = (math.sqrt(5) - 1) / 2
_PRECISION = math.log(1.03)


def total_variation(noisy: Image, weight: float, std: float) -> Image:
    """Isotropic total variation. Chambolle: J. Math. Imaging Vis. 20 (2004) 89."""
    return np.clip(denoise_tv_chambolle(noisy, weight=weight * std, eps=1e-5, max_num_iter=500), 0, 1)


def non_local_means(noisy: Image, weight: float, std: float) -> Image:
    """Non-local means of 5x5 patches. Buades, Coll, Morel: CVPR 2005."""
    return np.clip(
        denoise_nl_means(noisy, patch_size=5, patch_distance=6, h=weight * std, sigma=std, fast_mode=True), 0, 1
    )


def block_matching() -> Callable[[Image, float], Image] | None:
    """BM3D at a known noise level where the package ``bm3d`` is installed, else None.

    Its licence is for non-commercial use, so it is never a dependency. Dabov et al.: IEEE Trans. Image Process. 16
    (2007) 2080.
    """
    if importlib.util.find_spec("bm3d") is None:
        return None
    denoise = importlib.import_module("bm3d").bm3d
    return lambda noisy, std: np.clip(denoise(noisy, std), 0, 1).astype(np.float32)


def psnr(estimate: Image, clean: Image) -> float:
    """PSNR in dB of images in [0, 1], data range 1."""
    return -10 * math.log10(max(float(np.square(estimate - clean).mean()), 1e-20))


def tuned_weight(denoiser: Denoiser, noisy: Sequence[Image], clean: Sequence[Image], std: float) -> tuple[float, float]:
    """Return the weight of the best mean PSNR over training images, and that PSNR.

    Doublings of the weight bracket the optimum, golden sections narrow it to 3 %.

    Raises
    ------
    NumericsError
        If no optimum lies inside the range searched.
    """
    scores: dict[float, float] = {}

    def score(log_weight: float) -> float:
        if log_weight not in scores:
            weight = math.exp(log_weight)
            results = [psnr(denoiser(y, weight, std), x) for y, x in zip(noisy, clean, strict=True)]
            scores[log_weight] = sum(results) / len(results)
        return scores[log_weight]

    step, middle = math.log(2), 0.0
    for _ in range(2 * _MOST_DOUBLINGS):
        low, high = middle - step, middle + step
        if score(middle) >= max(score(low), score(high)):
            break
        middle = low if score(low) > score(high) else high
    else:
        raise NumericsError(
            f"expected an optimum between {math.exp(-_MOST_DOUBLINGS * step):.3g} and "
            f"{math.exp(_MOST_DOUBLINGS * step):.3g} of the noise, got a score that still rises at the end; "
            "use other slices to tune on"
        )
    while high - low > _PRECISION:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if score(left) >= score(right) else (left, high)
    best = max(scores, key=scores.__getitem__)
    if not min(scores) < best < max(scores):
        raise NumericsError(f"expected the best weight inside the search, got {math.exp(best):.3g} at its edge")
    return math.exp(best), scores[best]

"""The device implementation equals the reference, in any batch size, and is dropped where it does not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from treg_med.errors import ConfigError, GeometryError
from treg_med.evaluation import device_metrics
from treg_med.evaluation.device_metrics import REFERENCE, TOLERANCE, agrees, implementation
from treg_med.evaluation.protocols import available_protocols, evaluate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    agrees.cache_clear()
    yield
    agrees.cache_clear()


def _images(count: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(count)
    target = np.abs(np.cumsum(draw.standard_normal((count, side, side + 5)), axis=2)).astype(np.float32)
    return target + draw.standard_normal(target.shape).astype(np.float32), target


def test_the_cpu_agrees() -> None:
    assert agrees(CPU)
    assert implementation("cpu").name == "cpu"
    assert implementation(None) is REFERENCE


@pytest.mark.parametrize("count", [1, 31, 33])
@pytest.mark.parametrize("batch", [32, 1000])
def test_every_image_of_every_batch_is_measured(count: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = _images(count)
    monkeypatch.setattr(device_metrics, "_MOST_PIXELS", batch * target[0].size)
    own, ranges, mask = implementation(CPU), target.max(axis=(1, 2)), target > 1
    for functions in (own, REFERENCE):
        assert functions.haarpsi(prediction, target, ranges).shape == (count,)
    for mine, reference in (
        (own.psnr(prediction, target, ranges), REFERENCE.psnr(prediction, target, ranges)),
        (own.nmse(prediction, target), REFERENCE.nmse(prediction, target)),
        (own.haarpsi(prediction, target, ranges), REFERENCE.haarpsi(prediction, target, ranges)),
        *(
            (own.ssim(prediction, target, ranges, **how), REFERENCE.ssim(prediction, target, ranges, **how))
            for how in ({}, {"window": "gaussian"}, {"mask": mask}, {"window": "gaussian", "mask": mask})
        ),
    ):
        assert np.max(np.abs(mine - reference)) <= TOLERANCE
        assert np.isfinite(reference).all()


@pytest.mark.parametrize("shape", [(161, 161), (163, 174), (200, 177)])
def test_ms_ssim_of_odd_sides(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    target = np.abs(np.cumsum(draw.standard_normal((2, *shape)), axis=1))
    prediction = target + draw.standard_normal(target.shape)
    mine, reference = (f.ms_ssim(prediction, target, target.max()) for f in (implementation(CPU), REFERENCE))
    assert np.max(np.abs(mine - reference)) <= TOLERANCE


@pytest.mark.parametrize("protocol", available_protocols())
def test_protocols_give_the_same_numbers_on_a_device(protocol: str) -> None:
    prediction, target = _images(3, 40)
    reference = evaluate(prediction, target, protocol)
    for mine, theirs in zip(evaluate(prediction, target, protocol, device="cpu"), reference, strict=True):
        assert mine.values == pytest.approx(theirs.values, abs=TOLERANCE, nan_ok=True)


def test_a_device_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = device_metrics._haarpsi
    monkeypatch.setattr(device_metrics, "_haarpsi", lambda *args: right(*args) + 2e-6)
    with pytest.warns(UserWarning, match=r"differ from the reference by 2.0e-06.*the reference is used"):
        assert implementation("cpu") is REFERENCE


def test_a_device_that_gives_nan_or_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = device_metrics._ms_ssim
    monkeypatch.setattr(device_metrics, "_ms_ssim", lambda *args: right(*args) * np.nan)
    with pytest.warns(UserWarning, match="differ from the reference by nan"):
        assert implementation("cpu") is REFERENCE
    agrees.cache_clear()

    def no_double(*_: object) -> np.ndarray:
        raise TypeError("this device has no float64")

    monkeypatch.setattr(device_metrics, "_ms_ssim", no_double)
    with pytest.warns(UserWarning, match="no float64.*the reference is used"):
        assert implementation("cpu") is REFERENCE


def test_devices_and_shapes_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="expected a torch device"):
        implementation("gpu7")
    image = np.ones((1, 20, 20))
    with pytest.raises(GeometryError):
        implementation("cpu").ssim(image, image[:, :19], 1.0)
    with pytest.raises(ConfigError, match="window"):
        implementation("cpu").ssim(image, image, 1.0, window="boxcar")
    with pytest.raises(GeometryError, match="161"):
        implementation("cpu").ms_ssim(image, image, 1.0)

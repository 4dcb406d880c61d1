"""Each protocol against its published program restated, and what may and may not be compared or averaged."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import avg_pool2d, conv2d

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.evaluation import metrics, perceptual
from treg_med.evaluation.protocols import Score, available_protocols, average, evaluate, protocol_units
from treg_med.evaluation.regions import object_mask

SLICE_PROTOCOLS = ("lodopab", "contextmri", "inversebench-mri")


def _volume(seed: int, shape: tuple[int, int, int] = (4, 48, 40), scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Float32 magnitudes whose slices differ in brightness, and a noisy copy."""
    draw = np.random.default_rng(seed)
    brightness = draw.uniform(0.3, 1, (shape[0], 1, 1))
    target = brightness * np.abs(gaussian_filter(draw.standard_normal(shape), (0, 2, 2)))
    prediction = np.abs(target + draw.uniform(0.01, 0.2) * target.max() * draw.standard_normal(shape))
    return (scale * prediction).astype(np.float32), (scale * target).astype(np.float32)


def _published_fastmri(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Restate the published evaluation of one volume, in the precision of the files as it is there."""
    side = target.shape[-1]

    def centre(images: np.ndarray) -> np.ndarray:
        top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
        return images[:, top : top + side, left : left + side]

    prediction, target = centre(prediction), centre(target)
    largest = target.max()
    by_slice = [structural_similarity(t, p, data_range=largest) for t, p in zip(target, prediction, strict=True)]
    return {
        "nmse": float(np.linalg.norm(target - prediction) ** 2 / np.linalg.norm(target) ** 2),
        "psnr": float(peak_signal_noise_ratio(target, prediction, data_range=largest)),
        "ssim": float(np.mean(by_slice)),
    }


def test_fastmri_equals_the_published_evaluation_on_20_volumes() -> None:
    draw = np.random.default_rng(2024)
    differences = []
    for seed in range(20):
        width = int(draw.integers(20, 60))
        shape = (int(draw.integers(1, 6)), width + int(draw.integers(0, 30)), width)
        prediction, target = _volume(seed, shape, scale=10.0 ** draw.integers(-6, 4))
        # Reconstructions may cover more than the target.
        border = int(draw.integers(0, 5))
        wide = np.pad(prediction, ((0, 0), (border, border), (border, border)))
        (score,) = evaluate(wide, target)
        assert score.crop == (width, width)
        published = _published_fastmri(wide, target)
        assert score.values.keys() == published.keys()
        differences += [abs(score.values[name] - published[name]) for name in published]
    assert max(differences) <= 1e-6


def test_lodopab_equals_the_published_measures() -> None:
    prediction, target = _volume(0)
    for unit, p, t in (
        ("magnitude", prediction, target),
        # Attenuation 20 (1 + HU / 1000) per metre, over that of 3071 HU.
        ("HU", *(1000 * (images.astype(np.float64) * 81.35858 / 20 - 1) for images in (prediction, target))),
    ):
        for index, score in enumerate(evaluate(p, t, "lodopab", unit=unit)):
            x, y = target[index].astype(np.float64), prediction[index].astype(np.float64)
            wide, mse = x.max() - x.min(), np.mean((x - y) ** 2)
            assert score.slice == index
            assert score.data_range == pytest.approx(wide)
            assert score.values == pytest.approx(
                {
                    "psnr": 20 * math.log10(wide) - 10 * math.log10(mse),
                    "ssim": structural_similarity(y, x, data_range=wide),
                    "psnr_fr": -10 * math.log10(mse),
                    "ssim_fr": structural_similarity(y, x, data_range=1.0),
                },
                abs=1e-6,
            )


def test_lodopab_has_no_fixed_range_in_another_unit() -> None:
    prediction, target = _volume(0)
    score = evaluate(100 * prediction, 100 * target, "lodopab")[0]
    assert math.isnan(score.values["psnr_fr"])
    assert "not attenuation" in str(score.note)
    assert score.values["psnr"] == pytest.approx(evaluate(prediction, target, "lodopab")[0].values["psnr"], abs=1e-5)


def test_contextmri_normalises_each_image_by_itself() -> None:
    prediction, target = _volume(1)
    for index, score in enumerate(evaluate(prediction, target, "contextmri")):
        x, y = (images[index].astype(np.float64) for images in (target, prediction))
        x, y = (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)
        assert score.values == pytest.approx(
            {
                "psnr": peak_signal_noise_ratio(x, y, data_range=1.0),
                "ssim": structural_similarity(x, y, data_range=2.0),
                "ssim_unit_range": structural_similarity(x, y, data_range=1.0),
            }
        )
    shifted = evaluate(3 * prediction + 7, target, "contextmri")
    assert average(shifted) == pytest.approx(average(evaluate(prediction, target, "contextmri")), abs=1e-4)


@pytest.mark.parametrize("shape", [(2, 48, 40), (2, 401, 390)])
def test_inversebench_equals_piq_restated(shape: tuple[int, int, int]) -> None:
    prediction, target = _volume(2, shape, scale=50)
    line = torch.exp(-0.5 * (torch.arange(-5.0, 6.0) / 1.5) ** 2)
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    for index, score in enumerate(evaluate(prediction, target, "inversebench-mri")):
        y = torch.from_numpy(target[index])[None, None]
        peak = y.max()
        x = torch.from_numpy(prediction[index])[None, None].clip(0, peak) / peak
        y = y / peak
        psnr = -10 * torch.log10(torch.mean((x - y) ** 2) + 1e-8)
        factor = max(1, round(min(shape[1:]) / 256))
        x, y = avg_pool2d(x, factor), avg_pool2d(y, factor)
        mx, my, xx, yy, xy = (conv2d(v, window) for v in (x, y, x * x, y * y, x * y))
        contrast = (2 * (xy - mx * my) + 0.03**2) / (xx - mx**2 + yy - my**2 + 0.03**2)
        ssim = ((2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2) * contrast).mean()
        # The published numbers are in single precision.
        assert score.values == pytest.approx({"psnr": float(psnr), "ssim": float(ssim)}, abs=1e-5)
        assert factor == (1 if shape[1] < 384 else 2)


def test_inversebench_never_exceeds_80_db() -> None:
    _, target = _volume(3)
    assert evaluate(target, target, "inversebench-mri")[0].values == pytest.approx({"psnr": 80.0, "ssim": 1.0})


def test_volume_pools_errors_over_the_object_and_averages_similarities_over_slices() -> None:
    draw = np.random.default_rng(4)
    rows, columns = np.mgrid[-1:1:170j, -1:1:164j]
    head = (rows**2 + columns**2 < 0.5) * (2 + np.sin(8 * rows))
    small = (rows**2 + columns**2 < 0.1) * 1.5
    target = np.stack([head, small, np.zeros_like(head)]) + 0.01
    prediction = target + 0.1 * draw.standard_normal(target.shape)
    whole, *slices = evaluate(prediction, target, "volume")
    mask = object_mask(target)
    peak = target.max()
    assert whole.level == "volume" and [s.slice for s in slices] == [0, 1, 2]
    assert {s.data_range for s in (whole, *slices)} == {peak}
    assert whole.mask == f"target above 10 % of its 99th percentile, holes filled; {mask.sum()} pixels"
    error = (prediction - target)[mask]
    assert whole.values["psnr"] == pytest.approx(10 * math.log10(peak**2 / np.mean(error**2)))
    assert whole.values["nmse"] == pytest.approx(np.sum(error**2) / np.sum(target[mask] ** 2))
    assert slices[1].values["psnr"] == pytest.approx(metrics.psnr(prediction, target, peak, mask)[1])
    expected = {
        "ssim": metrics.ssim(prediction, target, peak, mask=mask)[:2],
        "ms_ssim": perceptual.ms_ssim(prediction, target, peak)[:2],
        "haarpsi": perceptual.haarpsi(prediction, target, peak)[:2],
    }
    for name, values in expected.items():
        assert [s.values[name] for s in slices[:2]] == pytest.approx(list(values))
        assert whole.values[name] == pytest.approx(values.mean())
    # The last slice holds no object.
    assert all(math.isnan(value) for value in slices[2].values.values())
    assert "less than 1 %" in str(slices[2].note) and whole.note is None


def test_volume_does_not_depend_on_how_much_air_is_around() -> None:
    draw = np.random.default_rng(5)
    target = np.zeros((2, 60, 60))
    target[:, 20:40, 20:40] = 1 + 0.2 * draw.standard_normal((2, 20, 20))
    prediction = target + 0.1 * draw.standard_normal(target.shape)
    prediction *= target > 0
    around, cut = (np.s_[:], np.s_[:, 10:50, 10:50])
    wide, narrow = (evaluate(prediction[part], target[part], "volume")[0].values for part in (around, cut))
    assert wide["psnr"] == pytest.approx(narrow["psnr"]) and wide["ssim"] == pytest.approx(narrow["ssim"])
    wide, narrow = (evaluate(prediction[part], target[part])[0].values for part in (around, cut))
    assert wide["psnr"] - narrow["psnr"] == pytest.approx(10 * math.log10(3600 / 1600))


def test_volume_takes_a_mask_and_needs_large_images_for_ms_ssim() -> None:
    prediction, target = _volume(6)
    mask = np.zeros(target.shape, np.uint8)
    mask[:, 10:30, 10:30] = 1
    whole = evaluate(prediction, target, "volume", mask=torch.from_numpy(mask))[0]
    assert whole.mask == "given; 1600 pixels"
    assert whole.data_range == target[mask > 0].max()
    assert math.isnan(whole.values["ms_ssim"]) and "161 pixels, got 40" in str(whole.note)
    assert whole.values["psnr"] == pytest.approx(
        10 * math.log10(whole.data_range**2 / np.mean((prediction - target)[mask > 0].astype(float) ** 2))
    )


def test_hounsfield_errors_by_hand() -> None:
    target = np.full((1, 40, 40), -1000.0)
    target[:, 10:30, 10:30] = 40.0
    target[:, 10:14, 10:30] = 1500.0
    prediction = target + 10
    prediction[:, 10:14, 10:30] = 1300
    prediction[:, :5] = 3000
    whole, only = evaluate(prediction, target, "volume", unit="HU")
    assert whole.data_range == 2000
    assert whole.mask == "target above -500 HU, holes filled; 400 pixels"
    assert whole.values["rmse_hu"] == pytest.approx(math.sqrt((320 * 10**2 + 80 * 200**2) / 400))
    assert whole.values["mae_hu"] == pytest.approx((320 * 10 + 80 * 200) / 400)
    assert whole.values["rmse_hu_soft"] == pytest.approx(10)
    # Both sides of the dense part are clipped to 1000 HU, and air counts as 0.
    assert whole.values["psnr"] == pytest.approx(10 * math.log10(2000**2 / (320 * 100 / 400)))
    assert whole.values["nmse"] == pytest.approx(320 * 100 / (320 * 1040**2 + 80 * 2000**2))
    assert only.values == pytest.approx(whole.values, nan_ok=True)


def test_object_mask_fills_holes_and_keeps_air_out() -> None:
    image = np.zeros((1, 30, 30))
    image[:, 5:25, 5:25] = 1
    image[:, 10:15, 10:15] = 0
    filled = np.zeros(image.shape, bool)
    filled[:, 5:25, 5:25] = True
    assert np.array_equal(object_mask(image), filled)
    assert np.array_equal(object_mask(1000 * (image - 1), "HU"), filled)
    assert np.array_equal(object_mask(-image), np.zeros_like(filled))
    assert binary_fill_holes(image[0] > 0).sum() == filled.sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("protocol", available_protocols())
def test_a_prediction_that_is_not_finite_is_counted(protocol: str, bad: float) -> None:
    prediction, target = _volume(7, (4, 48, 48))
    prediction[2, 20:22, 20] = bad
    scores = evaluate(prediction, target, protocol)
    clean = {s.slice: s for s in evaluate(target, target, protocol)}
    for score in scores:
        spoiled = score.slice in (2, None)
        assert score.nan_pixels == (2 if spoiled else 0)
        assert score.values.keys() == clean[score.slice].values.keys()
        finite = [not math.isnan(value) for name, value in score.values.items() if name != "ms_ssim"]
        assert not any(finite) if spoiled else all(finite)
        if spoiled:
            assert score.note == "2 NaN or Inf pixels in slice 2 of the prediction"


@pytest.mark.parametrize("protocol", available_protocols())
def test_a_target_that_is_not_finite_is_refused(protocol: str) -> None:
    prediction, target = _volume(8)
    target[1:3, 5, 5] = np.nan
    with pytest.raises(NumericsError, match="in 2 of 4 slices, the first is slice 1"):
        evaluate(prediction, target, protocol)


@pytest.mark.parametrize("protocol", SLICE_PROTOCOLS)
def test_an_empty_slice_of_the_target_has_no_score_and_says_why(protocol: str) -> None:
    prediction, target = _volume(9)
    target[1] = 0
    scores = evaluate(prediction, target, protocol)
    assert scores[1].note == "constant or empty target: no data range"
    assert all(math.isnan(value) for value in scores[1].values.values())
    assert scores[1].nan_pixels == 0
    assert all(math.isfinite(value) for s in (scores[0], scores[2]) for value in s.values.values())


def test_a_constant_prediction_cannot_be_normalised() -> None:
    prediction, target = _volume(10)
    prediction[3] = 0.5
    score = evaluate(prediction, target, "contextmri")[3]
    assert "constant prediction" in str(score.note) and math.isnan(score.values["psnr"])


@pytest.mark.parametrize("protocol", ["fastmri", "volume"])
def test_an_empty_volume_is_refused(protocol: str) -> None:
    prediction, target = _volume(11)
    with pytest.raises(NumericsError, match="leave this volume out"):
        evaluate(prediction, 0 * target, protocol)
    if protocol == "volume":
        with pytest.raises(NumericsError, match="is this the right mask"):
            evaluate(prediction, 0 * target, protocol, mask=np.ones(target.shape))
        with pytest.raises(NumericsError, match="expected an object"):
            evaluate(prediction, target, protocol, mask=np.zeros(target.shape))


def test_crops_are_recorded_and_centred() -> None:
    prediction, target = _volume(12, (2, 50, 41))
    assert evaluate(prediction, target)[0].crop == (41, 41)
    given = evaluate(prediction, target, "lodopab", crop=(30, 21))
    assert given[0].crop == (30, 21)
    assert given[0].values == evaluate(prediction[:, 10:40, 10:31], target[:, 10:40, 10:31], "lodopab")[0].values
    assert evaluate(prediction[:, :20], target[:, :20])[0].crop is None
    with pytest.raises(GeometryError, match=r"at least \(51, 20\) pixels"):
        evaluate(prediction, target, crop=(51, 20))


def test_tensors_integers_and_double_precision_give_the_same() -> None:
    prediction, target = (np.rint(1000 * images).astype(np.int16) for images in _volume(13))
    expected = evaluate(prediction.astype(float), target.astype(float))[0]
    assert evaluate(prediction, target)[0] == expected
    tensors = (torch.from_numpy(images.astype(np.float32)).requires_grad_() for images in (prediction, target))
    assert evaluate(*tensors)[0].values == pytest.approx(expected.values, abs=1e-6)


def test_what_cannot_be_scored_is_refused() -> None:
    prediction, target = _volume(14)
    with pytest.raises(ConfigError, match="did you mean 'fastmri'"):
        evaluate(prediction, target, "fast-mri")
    with pytest.raises(ConfigError, match="did you mean 'inversebench-mri'"):
        protocol_units("inversebench")
    with pytest.raises(ConfigError, match="for CT choose"):
        evaluate(prediction, target, unit="HU")
    with pytest.raises(ConfigError, match="got unit 'mm'"):
        evaluate(prediction, target, "volume", unit="mm")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="counts every pixel"):
        evaluate(prediction, target, mask=np.ones(target.shape))
    with pytest.raises(ConfigError, match="take the magnitude"):
        evaluate(prediction.astype(np.complex64), target)
    with pytest.raises(GeometryError, match="expected prediction and target of one shape"):
        evaluate(prediction[:3], target)
    with pytest.raises(GeometryError, match="add an axis"):
        evaluate(prediction[0], target[0], "volume")
    with pytest.raises(GeometryError, match="add an axis"):
        evaluate(prediction[0], target[0])
    with pytest.raises(GeometryError, match="at least 11 x 11"):
        evaluate(prediction[:, :10, :10], target[:, :10, :10], "inversebench-mri")
    with pytest.raises(GeometryError):
        evaluate(prediction, target, "volume", mask=np.ones((4, 48, 41)))


def test_average_refuses_to_mix() -> None:
    prediction, target = _volume(15)
    lodopab = evaluate(prediction, target, "lodopab")
    values = [s.values["ssim"] for s in lodopab]
    assert average(lodopab)["ssim"] == pytest.approx(np.mean(values))
    volume = evaluate(prediction, target, "volume")
    for mixed in (
        [*lodopab, *evaluate(prediction, target, "contextmri")],
        [lodopab[0], replace(lodopab[1], version=2)],
        volume,
        [lodopab[0], replace(lodopab[1], values={"psnr": 1.0})],
        [],
    ):
        with pytest.raises(ConfigError, match="one protocol, version and level"):
            average(mixed)
    spoiled = replace(lodopab[0], values=dict.fromkeys(lodopab[0].values, math.nan))
    assert math.isnan(average([spoiled, *lodopab[1:]])["psnr"])


def test_protocols_disagree_on_one_volume() -> None:
    # The reason for all of this: whose numbers are they?
    prediction, target = _volume(16)
    psnr = {name: average(_of_one_level(evaluate(prediction, target, name)))["psnr"] for name in available_protocols()}
    assert max(psnr.values()) - min(psnr.values()) > 1
    assert len({round(value, 6) for value in psnr.values()}) == len(psnr)


def _of_one_level(scores: list[Score]) -> list[Score]:
    return [s for s in scores if s.level == scores[-1].level]

"""Counts: their statistics, the weights of their logarithm, and flat fields of real and simulated detectors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError
from treg_med.operators.counts import LogData, flat_field, log_transform, simulate_counts


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sinogram(views: int = 30, bins: int = 40, peak: float = 3.0) -> Tensor:
    s = torch.linspace(-1.2, 1.2, bins, dtype=torch.float64)
    return peak * (1 - s * s).clamp_min(0).sqrt().expand(views, bins).contiguous()


def _detector(photons: Tensor, gain: float, offset: Tensor, readout: float, seed: int) -> Tensor:
    """Return what an integrating detector writes for a mean number of photons."""
    generator = _generator(seed)
    noise = readout * torch.randn(photons.shape, dtype=photons.dtype, generator=generator)
    return (gain * torch.poisson(photons, generator=generator) + offset + noise).clamp_min(0)


@pytest.mark.parametrize("electronic_std", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_have_the_mean_and_variance_of_the_model(electronic_std: float, dtype: torch.dtype) -> None:
    sinogram = torch.tensor([0.0, 1.0, 3.0, 7.0], dtype=dtype)
    counts = simulate_counts(
        sinogram.expand(40000, 4), 1000.0, electronic_std=electronic_std, generator=_generator()
    )
    assert counts.dtype == dtype
    expected = 1000 * torch.exp(-sinogram.double())
    assert torch.allclose(counts.double().mean(0), expected, rtol=2e-3, atol=0.12)
    assert torch.allclose(counts.double().var(0), expected + electronic_std**2, rtol=0.04)
    assert bool((counts == counts.round()).all()) == (electronic_std == 0)
    assert bool((counts < 0).any()) == (electronic_std > 0)


def test_draws_are_those_of_the_generator() -> None:
    first = simulate_counts(_sinogram(), 500.0, generator=_generator())
    assert torch.equal(first, simulate_counts(_sinogram(), 500.0, generator=_generator()))
    assert not torch.equal(first, simulate_counts(_sinogram(), 500.0, generator=_generator(1)))


def test_many_photons_keep_every_digit() -> None:
    counts = simulate_counts(torch.zeros(2000, dtype=torch.float64), 1e9, generator=_generator())
    assert bool((counts % 2 == 1).any())
    assert float(counts.std()) == pytest.approx(1e9**0.5, rel=0.1)


def test_bow_tie_gives_each_bin_its_own_photons() -> None:
    bow_tie = torch.linspace(200.0, 20000.0, 4)
    counts = simulate_counts(torch.zeros(20000, 4), bow_tie, generator=_generator())
    assert torch.allclose(counts.mean(0), bow_tie, rtol=2e-3)
    log = log_transform(counts, bow_tie)
    assert torch.allclose(log.sinogram.mean(0), torch.zeros(4), atol=5e-3)
    assert torch.allclose(log.sinogram.var(0), 1 / bow_tie, rtol=0.05)
    assert torch.allclose(log.i0, bow_tie)


@pytest.mark.parametrize("electronic_std", [0.0, 8.0])
def test_variance_of_the_logarithm_is_one_over_the_weight(electronic_std: float) -> None:
    sinogram = torch.tensor([0.0, 0.5, 1.5, 3.0], dtype=torch.float64)
    counts = simulate_counts(
        sinogram.expand(40000, 4), 2000.0, electronic_std=electronic_std, generator=_generator()
    )
    log = log_transform(counts, 2000.0, electronic_std=electronic_std)
    expected = 2000 * torch.exp(-sinogram)
    information = expected**2 / (expected + electronic_std**2)
    assert torch.allclose(log.sinogram.var(0), 1 / information, rtol=0.06)
    assert torch.allclose(log.weights.mean(0), information, rtol=0.02)
    assert torch.allclose(log.sinogram.mean(0), sinogram, atol=0.01)
    # Standardised by its own weight, every sample is of one size.
    assert float(((log.sinogram - sinogram).square() * log.weights).mean()) == pytest.approx(1, rel=0.05)
    assert log.starved == 0
    assert log.gain == 1


def test_noise_level_and_relative_weights_belong_together() -> None:
    log = log_transform(simulate_counts(_sinogram(), 4000.0, generator=_generator()), 4000.0)
    assert torch.allclose(log.noise_std**2 / log.relative_weights, 1 / log.weights)
    assert float(log.relative_weights.mean()) == pytest.approx(1)
    part = LogData(log.sinogram, log.weights * (torch.arange(40) > 10), log.i0, 0)
    assert float(part.relative_weights[:, 11:].mean()) == pytest.approx(1)


@pytest.mark.parametrize("electronic_std", [0.0, 3.0])
def test_starved_rays_are_finite_counted_and_do_not_dominate(electronic_std: float) -> None:
    sinogram = torch.full((2000, 5), 8.5, dtype=torch.float64)
    sinogram[:, 0] = 0.0
    counts = simulate_counts(sinogram, 1000.0, electronic_std=electronic_std, generator=_generator())
    log = log_transform(counts, 1000.0, electronic_std=electronic_std)
    assert log.starved == int((counts <= 0.1).sum()) > 500
    assert bool(torch.isfinite(log.sinogram).all()) and float(log.weights.min()) > 0
    assert float(log.sinogram.max()) == pytest.approx(math.log(1000 / 0.1))
    dark = counts <= 0.1
    assert float(log.weights[dark].max()) <= 0.1 + 1e-9
    # What they pull with, weight times squared error, stays below that of a ray with photons.
    pull = log.weights * (log.sinogram - sinogram).square()
    assert float(pull[dark].mean()) < 1


def test_counts_of_lodopab_come_back() -> None:
    stored = torch.tensor([4096.0, 1000.0, 1.0, 0.1, 0.0])
    log = log_transform(stored, 4096)
    assert torch.allclose(log.sinogram, torch.log(4096 / stored.clamp_min(0.1)))
    assert log.starved == 2


def test_integers_are_taken() -> None:
    counts = torch.tensor([[900, 1000], [0, 500]], dtype=torch.int32)
    log = log_transform(counts, 1000)
    assert log.sinogram.dtype == log.weights.dtype == torch.float32
    assert torch.equal(log.weights, torch.tensor([[900.0, 1000.0], [0.1, 500.0]]))


@pytest.mark.parametrize("i0", [0.0, -5.0, math.nan, math.inf, torch.tensor([10.0, 0.0])])
def test_photons_that_cannot_be_are_one_typed_error(i0: float | Tensor) -> None:
    with pytest.raises(ConfigError, match="i0 > 0"):
        simulate_counts(torch.zeros(3, 2), i0, generator=_generator())
    with pytest.raises(ConfigError, match="i0 > 0"):
        log_transform(torch.ones(3, 2), i0)


def test_bad_counts_are_one_typed_error() -> None:
    good = simulate_counts(_sinogram(), 1000.0, generator=_generator())
    for electronic_std in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="electronic_std"):
            log_transform(good, 1000.0, electronic_std=electronic_std)
        with pytest.raises(ConfigError, match="electronic_std"):
            simulate_counts(_sinogram(), 1000.0, electronic_std=electronic_std, generator=_generator())
    for floor in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="floor"):
            log_transform(good, 1000.0, floor=floor)
    with pytest.raises(GeometryError, match=r"\(40,\), got \(30,\)"):
        log_transform(good, torch.ones(30))
    with pytest.raises(GeometryError, match="broadcasts"):
        log_transform(good[0], torch.ones(2, 40))
    with pytest.raises(FormatError, match="1 of 1200 negative .*electronic_std"):
        log_transform(torch.cat([good.flatten()[:-1], torch.tensor([-1.0])]), 1000.0)
    with pytest.raises(NumericsError, match="1200 of 1200 NaN"):
        log_transform(good * math.nan, 1000.0)
    with pytest.raises(GeometryError, match="complex"):
        log_transform(good.to(torch.complex64), 1000.0)
    with pytest.raises(GeometryError, match=r"\(0, 40\)"):
        log_transform(good[:0], 1000.0)


def test_counts_and_photons_on_different_scales_are_one_typed_error() -> None:
    counts = simulate_counts(_sinogram(), 1e4, generator=_generator())
    with pytest.raises(FormatError, match="same unit"):
        log_transform(counts, 1.0)
    with pytest.raises(FormatError, match="same unit"):
        log_transform(counts / 1e4, 1e4)
    with pytest.raises(FormatError, match="same unit"):
        log_transform(torch.zeros(4, 4), 1e4)


def test_line_integrals_in_other_units_are_one_typed_error() -> None:
    with pytest.raises(NumericsError, match="1/mm"):
        simulate_counts(1000 * _sinogram(), 1e4, generator=_generator())
    with pytest.raises(NumericsError, match="1/mm"):
        simulate_counts(-1000 * _sinogram(), 1e4, generator=_generator())
    with pytest.raises(NumericsError, match="NaN"):
        simulate_counts(_sinogram() * math.nan, 1e4, generator=_generator())
    with pytest.raises(ConfigError, match="floating"):
        simulate_counts(torch.zeros(2, 2, dtype=torch.int64), 1e4, generator=_generator())


@pytest.mark.parametrize("gain", [0.05, 0.7, 30.0])
@pytest.mark.parametrize("flicker", [0.0, 0.1])
def test_flat_field_finds_gain_integrals_and_weights(gain: float, flicker: float) -> None:
    bow_tie = torch.linspace(3000.0, 20000.0, 300, dtype=torch.float64)
    offset, readout = gain * (500 + torch.arange(300) % 7).double(), 10 * gain
    brightness = 1 + flicker * torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None]
    flats = _detector(brightness * bow_tie, gain, offset, readout, 1)
    darks = _detector(torch.zeros(10, 300, dtype=torch.float64), gain, offset, readout, 2)
    sinogram = _sinogram(200, 300)
    raw = _detector(bow_tie * torch.exp(-sinogram), gain, offset, readout, 3)
    log = flat_field(raw, flats, darks)
    assert log.gain == pytest.approx(gain, rel=0.08)
    assert torch.allclose(log.i0, bow_tie, rtol=0.09)
    assert log.dead == log.starved == 0
    # The flats' own noise is the same in all views: about a tenth, left out of the weights.
    error = log.sinogram - sinogram
    assert float((error.var(0) * log.weights.mean(0)).mean()) == pytest.approx(1, rel=0.1)
    assert float((error.square() * log.weights).mean()) < 1.25


def test_unit_of_the_detector_does_not_matter() -> None:
    flats = _detector(torch.full((10, 200), 5000.0, dtype=torch.float64), 1.0, torch.tensor(100.0), 3.0, 1)
    darks = _detector(torch.zeros(10, 200, dtype=torch.float64), 1.0, torch.tensor(100.0), 3.0, 2)
    raw = _detector(5000 * torch.exp(-_sinogram(20, 200)), 1.0, torch.tensor(100.0), 3.0, 3)
    one, thousand = flat_field(raw, flats, darks), flat_field(1000 * raw, 1000 * flats, 1000 * darks)
    assert torch.allclose(one.sinogram, thousand.sinogram)
    assert torch.allclose(one.weights, thousand.weights)


def test_without_frames_the_weights_are_relative_and_say_so() -> None:
    flats = torch.full((200,), 5000.0)
    raw = (flats * torch.exp(-_sinogram(20, 200).float())).round()
    for bright in (flats, flats.expand(2, 200), flats.expand(10, 200)):
        log = flat_field(raw, bright)
        assert log.gain is None
        assert torch.equal(log.weights, raw)
        assert torch.allclose(log.sinogram, _sinogram(20, 200).float(), atol=2e-3)
    told = flat_field(raw, flats, gain=2.0)
    assert told.gain == 2.0
    assert torch.equal(told.weights, raw / 2)


def test_rows_of_a_flat_panel_are_taken() -> None:
    flats = _detector(torch.full((10, 3, 50), 5000.0, dtype=torch.float64), 1.0, torch.tensor(0.0), 0.0, 1)
    raw = _detector(torch.full((7, 3, 50), 1000.0, dtype=torch.float64), 1.0, torch.tensor(0.0), 0.0, 2)
    log = flat_field(raw, flats, torch.zeros(3, 50))
    assert log.sinogram.shape == log.weights.shape == (7, 3, 50)
    assert log.i0.shape == (3, 50)
    assert float(log.sinogram.mean()) == pytest.approx(math.log(5), abs=0.01)


def test_dead_bins_have_no_weight_and_are_counted() -> None:
    flats = _detector(torch.full((10, 50), 5000.0, dtype=torch.float64), 1.0, torch.tensor(100.0), 3.0, 1)
    darks = torch.full((10, 50), 100.0)
    flats[:, 7], flats[:, 20] = 100.0, 0.0
    raw = _detector(torch.full((6, 50), 1000.0, dtype=torch.float64), 1.0, torch.tensor(100.0), 3.0, 3)
    raw[:, 3] = 0.0
    log = flat_field(raw, flats, darks)
    assert log.dead == 2
    assert log.starved == 6
    assert bool((log.weights[:, [7, 20]] == 0).all()) and bool((log.sinogram[:, [7, 20]] == 0).all())
    assert int((log.weights == 0).sum()) == 12
    assert bool(torch.isfinite(log.sinogram).all())
    assert float(log.weights[:, 3].max()) <= 0.1 + 1e-9


def test_bad_flat_fields_are_one_typed_error() -> None:
    flats, darks = torch.full((10, 50), 5000.0), torch.full((10, 50), 100.0)
    raw = torch.full((6, 50), 1000.0)
    with pytest.raises(FormatError, match="swapped"):
        flat_field(raw, darks, flats)
    with pytest.raises(GeometryError, match=r"flats of shape \(frames, \*\(50,\)\).*got \(10, 49\)"):
        flat_field(raw, flats[:, 1:], darks)
    with pytest.raises(GeometryError, match="darks"):
        flat_field(raw, flats, darks[:, None])
    with pytest.raises(GeometryError, match="flats"):
        flat_field(raw, flats[:0], darks)
    with pytest.raises(GeometryError, match="views"):
        flat_field(raw[0], flats, darks)
    with pytest.raises(ConfigError, match="gain"):
        flat_field(raw, flats, darks, gain=0.0)
    with pytest.raises(FormatError, match="without the darks subtracted"):
        flat_field(raw - 2000, flats, darks)
    with pytest.raises(FormatError, match="check the flats"):
        flat_field(raw, flats - 6000, darks)
    for values in ((raw * math.nan, flats, darks), (raw, flats * math.inf, darks), (raw, flats, darks * math.nan)):
        with pytest.raises(NumericsError, match="NaN"):
            flat_field(*values)
    with pytest.raises(FormatError, match="same unit"):
        flat_field(10 * raw, flats / 10, darks / 10)


def test_real_scan_has_the_noise_its_flats_predict(shared: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared / "sino" / "tooth.h5") as file:
        raw, flats, darks = (
            torch.from_numpy(file[f"exchange/{name}"][...]) for name in ("data", "data_white", "data_dark")
        )
    log = flat_field(raw, flats, darks)
    assert log.sinogram.shape == (181, 2, 640)
    assert log.dead == log.starved == 0
    # 40 bins of air beside the tooth; second differences over the views leave only noise.
    air = log.sinogram[..., :40]
    noise = ((air[2:] - 2 * air[1:-1] + air[:-2]) / 6**0.5).std()
    assert float(noise) == pytest.approx(float((1 / log.weights[..., :40]).mean().sqrt()), rel=0.05)
    assert abs(float(air.mean())) < 0.005

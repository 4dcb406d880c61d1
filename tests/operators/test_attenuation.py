"""Hounsfield units: the formula, its units, and volumes that are not quite in HU."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, FormatError, NumericsError
from treg_med.operators.hounsfield_units import MU_WATER, attenuation, clean_hounsfield, hounsfield


def _body() -> Tensor:
    """Air, lung, fat, water and bone, whole numbers."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([-1000.0, -850.0, -100.0, 0.0, 40.0, 900.0])
    noise = 12 * torch.randn(6, 20, 20, generator=generator)
    return (means[:, None, None] + noise).round().clamp(-1024, 3071)


def test_water_is_0_and_air_is_minus_1000() -> None:
    mu = torch.tensor([0.0, MU_WATER, 2 * MU_WATER], dtype=torch.float64)
    assert torch.allclose(hounsfield(mu), torch.tensor([-1000.0, 0.0, 1000.0], dtype=torch.float64))
    assert torch.allclose(attenuation(hounsfield(mu, 0.02), 0.02), mu)


def test_attenuation_of_water_is_that_of_the_tables_at_70_kev() -> None:
    # NIST XCOM, total with coherent scattering, water: 0.2059 cm^2/g at 60 keV, 0.1837 at 80 keV.
    assert pytest.approx((0.02059 * 0.01837) ** 0.5, rel=0.02) == MU_WATER


def test_constants_of_lodopab_follow() -> None:
    # Its largest value, 3071 HU, is 81.35858 per metre.
    mu = attenuation(torch.tensor(3071.0, dtype=torch.float64), 0.02, mu_air=2e-5)
    assert float(mu) == pytest.approx(81.35858e-3, rel=1e-7)
    assert float(hounsfield(mu, 0.02, mu_air=2e-5)) == pytest.approx(3071)


def test_precision_and_shape_follow_and_integers_are_taken() -> None:
    assert hounsfield(torch.zeros(2, 3, 4)).dtype == torch.float32
    assert attenuation(torch.zeros(2, dtype=torch.int16)).dtype == torch.float32
    assert attenuation(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("mu_water", [0.0, -0.02, 0.192, 19.2, math.nan, math.inf])
def test_wrong_units_of_water_are_one_typed_error(mu_water: float) -> None:
    with pytest.raises(ConfigError, match="1/mm"):
        hounsfield(torch.zeros(2), mu_water)
    with pytest.raises(ConfigError, match="1/mm"):
        attenuation(torch.zeros(2), mu_water)


def test_other_bad_arguments_are_one_typed_error() -> None:
    for mu_air in (-0.1, 0.02, math.nan):
        with pytest.raises(ConfigError, match="mu_air"):
            hounsfield(torch.zeros(2), 0.02, mu_air=mu_air)
    with pytest.raises(ConfigError, match="real image"):
        hounsfield(torch.zeros(2, dtype=torch.complex64))


def test_a_volume_in_hu_is_left_alone() -> None:
    body = _body()
    cleaned, note = clean_hounsfield(body)
    assert note == ""
    assert torch.equal(cleaned, body)
    assert clean_hounsfield(body.double())[0].dtype == torch.float64
    # Air of exactly -1000, as phantoms have it, is no padding.
    phantom = torch.tensor([-1000.0, -1000.0, 0.0])
    assert torch.equal(clean_hounsfield(phantom)[0], phantom)
    with_metal = torch.cat([body.flatten(), torch.tensor([30000.0])])
    assert torch.equal(clean_hounsfield(with_metal)[0], with_metal)


@pytest.mark.parametrize("padding", [-2000, -3024, -1025, -32768])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_padding_becomes_air_and_is_counted(padding: int, dtype: torch.dtype) -> None:
    body = _body()
    stored = body.to(dtype)
    stored[0, :10] = padding
    cleaned, note = clean_hounsfield(stored)
    assert cleaned.dtype == torch.float32
    assert bool((cleaned[0, :10] == -1000).all())
    assert torch.equal(cleaned[1:], body[1:])
    assert f"200 values below -1024 (lowest {padding})" in note


def test_wrapped_and_moved_values_are_put_back_and_said() -> None:
    body = _body()
    body[0, 0] = -2000
    expected = clean_hounsfield(body)[0]
    for stored, words in (
        (body.int() % 65536, "signed 16 bit read as unsigned: 65536 subtracted"),
        (body.to(torch.int16).view(torch.uint16), "signed 16 bit read as unsigned"),
        (body + 32768, "32768 subtracted"),
        (body - 32768, "32768 added"),
    ):
        cleaned, note = clean_hounsfield(stored)
        assert torch.equal(cleaned, expected)
        assert words in note
        assert "20 values below -1024 (lowest -2000)" in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hu: hu + 1024, "offset=-1024"),
        (lambda hu: torch.where(hu < -990, -2000, hu + 1024), "offset=-1024"),
        (lambda hu: (hu + 1024) / 4095, "normalised image or an attenuation"),
        (lambda hu: hu / 1000, "normalised image or an attenuation"),
        (lambda hu: ((hu + 1000) / 2000 * 255).clamp(0, 255), "8-bit"),
        (lambda hu: attenuation(hu).clamp_min(0), "hounsfield"),
        (lambda hu: attenuation(hu).clamp_min(0) * 1000, "offset"),
        (lambda hu: hu * 10, "rescale slope"),
        (lambda hu: hu + 40000, "signed"),
        (lambda hu: hu * 100, "overflow or another scale"),
        (lambda hu: hu - 5000, "all below -1024"),
        (lambda hu: hu.to(torch.complex64), "complex64"),
        (lambda hu: hu[:0], "shape"),
    ],
    ids="stored padded 0-to-1 kilo-HU 8-bit 1/mm 1/m x10 moved x100 low complex empty".split(),
)
def test_another_scale_is_one_typed_error(change: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        clean_hounsfield(change(_body()))


def test_the_fix_of_the_message_works() -> None:
    body = _body()
    cleaned, note = clean_hounsfield(body + 1024, offset=-1024)
    assert torch.equal(cleaned, body)
    assert note == "-1024 added as told"
    brain = 30 + body[3].clamp_min(0)
    with pytest.raises(FormatError, match="offset=0"):
        clean_hounsfield(brain)
    assert torch.equal(clean_hounsfield(brain, offset=0)[0], brain)


def test_values_that_are_not_numbers_are_one_typed_error() -> None:
    body = _body()
    body[0, 0, :3] = math.nan
    with pytest.raises(NumericsError, match="3 of 2400 NaN"):
        clean_hounsfield(body)
    with pytest.raises(ConfigError, match="offset"):
        clean_hounsfield(_body(), offset=math.nan)


def test_real_volume_in_hu_passes(shared: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    stored = torch.from_numpy(nibabel.load(shared / "nifti" / "ct_chest_a_small.nii.gz").get_fdata(dtype="float32"))
    cleaned, note = clean_hounsfield(stored)
    assert float(cleaned.min()) >= -1024
    assert torch.equal(cleaned[stored >= -1024], stored[stored >= -1024])
    assert bool(note) == bool((stored < -1024).any())

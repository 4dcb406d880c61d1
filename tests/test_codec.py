"""One codec, one round trip."""

import pytest
import torch

from treg_med.codec import ImageCodec, apply_phase, smooth_phase
from treg_med.errors import GeometryError, NumericsError


@pytest.mark.parametrize("shape", [(230, 180), (33, 64), (32, 32)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_round_trip_is_exact_also_outside_the_range(shape: tuple[int, int], batch: tuple[int, ...]) -> None:
    image = torch.randn(*batch, *shape, dtype=torch.float64) * 3
    scale = torch.rand(batch, dtype=torch.float64) + 0.5
    codec = ImageCodec(shape, 32, scale)
    encoded = codec.encode(image)
    assert encoded.shape[-2] % 32 == 0 and encoded.shape[-1] % 32 == 0
    assert torch.allclose(codec.decode(encoded, batch), image, rtol=1e-12, atol=1e-12)


def test_padding_is_background_and_one_is_the_upper_level() -> None:
    codec = ImageCodec((30, 30), 32, 0.25)
    encoded = codec.encode(torch.full((30, 30), 4.0))
    assert encoded[0, 0, 0, 0] == -1
    assert encoded[0, 0, 16, 16] == 1


def test_errors_name_shape_and_scale() -> None:
    with pytest.raises(GeometryError, match=r"\(8, 8\).*\(8, 9\)"):
        ImageCodec((8, 8)).encode(torch.zeros(8, 9))
    with pytest.raises(NumericsError, match="positive"):
        ImageCodec((8, 8), scale=0.0)


def test_smooth_phase_recovers_a_slow_ramp_and_keeps_pixels_at_zero_width() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(64, 64)
    image = apply_phase(torch.ones(64, 64), ramp)
    assert (smooth_phase(image, 2.0) - ramp)[8:-8, 8:-8].abs().max() < 0.02
    assert torch.allclose(smooth_phase(image, 0.0), ramp, atol=1e-6)

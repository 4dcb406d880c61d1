"""One codec, one round trip."""

import pytest
import torch

from treg_med.codec import ImageCodec
from treg_med.data.records import Geometry
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


def test_prior_sees_the_image_upright_and_the_turn_is_undone() -> None:
    geometry = Geometry(shape=(24, 16, 1), display_rot90=1, display_flip=True)
    codec = ImageCodec((24, 16), 8, 1.0, geometry.to_display, geometry.from_display)
    image = torch.rand(2, 24, 16)
    encoded = codec.encode(image)
    assert encoded.shape == (2, 1, 16, 24)
    assert torch.allclose((encoded[:, 0] + 1) / 2, geometry.to_display(image))
    assert torch.allclose(codec.decode(encoded, (2,)), image, atol=1e-6)

"""One codec, one round trip."""

import pytest
import torch

from treg_med.codec import ImageCodec, SoftClip
from treg_med.data.records import Geometry
from treg_med.errors import ConfigError, GeometryError, NumericsError


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


@pytest.mark.parametrize(("knee", "softness"), [(2.0, 2.0), (0.9, 0.5)])
def test_shoulder_is_smooth_and_undone_for_lung_bone_and_metal(knee: float, softness: float) -> None:
    soft_clip = SoftClip(knee, softness)
    hounsfield = torch.tensor([-1100.0, -1000.0, -950.0, 0.0, 60.0, 899.0, 1999.0, 2001.0, 3000.0, 20000.0]).double()
    image = hounsfield / 1000
    compressed = soft_clip.compress(image)
    torch.testing.assert_close(soft_clip.expand(compressed), image, rtol=1e-12, atol=1e-12)
    assert torch.equal(compressed[image <= knee], image[image <= knee])
    assert bool((compressed.diff() > 0).all())
    edge = torch.tensor([knee + 1e-6], dtype=torch.float64)
    assert float(soft_clip.compress(edge) - knee) == pytest.approx(1e-6, rel=1e-4)
    assert bool(torch.isfinite(soft_clip.expand(torch.full((1,), 1e9))).all())


def test_codec_stays_affine_with_a_shoulder() -> None:
    codec = ImageCodec((8, 8), 8, 1 / (2 * 0.02), soft_clip=SoftClip())
    water, bone = torch.full((8, 8), 0.02), torch.full((8, 8), 0.08)
    torch.testing.assert_close(codec.encode(water), torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(codec.encode(bone), torch.full((1, 1, 8, 8), 3.0))
    torch.testing.assert_close(codec.decode(codec.encode(bone)), bone[None].reshape(8, 8))
    assert float(codec.compress(codec.encode(bone)).max()) < 3
    torch.testing.assert_close(codec.expand(codec.compress(codec.encode(bone))), codec.encode(bone))
    plain = ImageCodec((8, 8))
    assert plain.compress(bone) is bone and plain.expand(bone) is bone
    with pytest.raises(ConfigError, match="softness"):
        SoftClip(softness=0.0)

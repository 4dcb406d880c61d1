"""Operators on images against dense algebra and independent references; kernels, masks and real noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import (
    Blur,
    Inpainting,
    LinearOperator,
    Separable,
    SuperResolution,
    box_mask,
    gaussian_kernel,
    gaussian_noise,
    motion_kernel,
    random_pixel_mask,
)
from treg_med.operators.checks import dense_matrix


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=_generator(seed))


OPERATORS: dict[str, Callable[[bool], LinearOperator]] = {
    # Of rank 3 x 4: singular along both axes.
    "separable": lambda c: Separable(_random(5, 3) @ _random(3, 6), _random(7, 4) @ _random(4, 5), is_complex=c),
    "mean": lambda c: SuperResolution((6, 8), 2, is_complex=c),
    "bicubic": lambda c: SuperResolution((6, 9), 3, "bicubic", is_complex=c),
    "blur-even": lambda c: Blur((6, 8), _random(4, 3), is_complex=c),
    "blur-odd": lambda c: Blur((7, 5), _random(7, 2), is_complex=c),
    "inpainting": lambda c: Inpainting(random_pixel_mask((6, 7), 0.4, generator=_generator()), is_complex=c),
}


@pytest.fixture(params=[False, True], ids=["real", "complex"])
def is_complex(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=sorted(OPERATORS))
def operator(request: pytest.FixtureRequest, is_complex: bool) -> LinearOperator:
    return OPERATORS[request.param](is_complex)


def _dense(operator: LinearOperator) -> tuple[Tensor, torch.dtype]:
    dtype = torch.complex128 if operator.is_complex else torch.float64
    return dense_matrix(operator, operator.domain_shape, dtype, torch.device("cpu")), dtype


@pytest.mark.parametrize("weight", [0.3, torch.tensor(2.0), torch.tensor([0.01, 5.0])], ids=["float", "0d", "batch"])
def test_prox_is_the_dense_solution(operator: LinearOperator, weight: float | Tensor) -> None:
    A, dtype = _dense(operator)
    x0, y = _random(*operator.domain_shape, dtype=dtype), _random(2, *operator.range_shape, dtype=dtype)
    values = torch.as_tensor(weight).to(dtype).expand(2)[:, None, None]
    normal = A.mH @ A + values * torch.eye(A.shape[1])
    rhs = A.mH @ y.reshape(2, -1, 1) + values * x0.reshape(-1, 1)
    expected = torch.linalg.solve(normal, rhs).reshape(2, *operator.domain_shape)
    assert torch.allclose(operator.prox(x0, y, weight), expected, atol=1e-11)


def test_pinv_and_norm_are_those_of_the_dense_matrix(operator: LinearOperator) -> None:
    A, dtype = _dense(operator)
    x0, y = _random(2, *operator.domain_shape, dtype=dtype), _random(2, *operator.range_shape, dtype=dtype)
    inverse = torch.linalg.pinv(A, rtol=1e-6)
    shortest = (inverse @ y.reshape(2, -1, 1)).reshape(x0.shape)
    assert torch.allclose(operator.pinv(y), shortest, atol=1e-10)
    nearest = x0 + (inverse @ (y - operator(x0)).reshape(2, -1, 1)).reshape(x0.shape)
    assert torch.allclose(operator.pinv(y, x0=x0), nearest, atol=1e-10)
    assert operator.norm() == pytest.approx(float(torch.linalg.matrix_norm(A, ord=2)), rel=1e-12)


def test_prox_and_pinv_are_differentiable_in_the_data_and_take_an_empty_batch(operator: LinearOperator) -> None:
    dtype = torch.complex128 if operator.is_complex else torch.float64
    x0 = _random(*operator.domain_shape, dtype=dtype)
    y = _random(*operator.range_shape, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(lambda data: operator.prox(x0, data, 0.5), (y,), fast_mode=True)
    empty = y.detach().expand(0, *operator.range_shape)
    assert operator.prox(x0, empty, 0.5).shape == operator.pinv(empty).shape == (0, *operator.domain_shape)


def test_single_precision_is_kept(operator: LinearOperator) -> None:
    dtype = torch.complex64 if operator.is_complex else torch.float32
    x0, y = _random(*operator.domain_shape, dtype=dtype), _random(*operator.range_shape, dtype=dtype)
    weight = torch.tensor(0.5, dtype=torch.float64)
    assert operator.prox(x0, y, weight).dtype == operator.pinv(y).dtype == dtype


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_block_mean_averages_and_has_orthogonal_rows(factor: int) -> None:
    operator = SuperResolution((6, 12), factor)
    x, y = _random(2, 6, 12), _random(2, 6 // factor, 12 // factor)
    assert torch.allclose(operator(x), torch.nn.functional.avg_pool2d(x, factor), atol=1e-14)
    assert torch.allclose(operator(operator.adjoint(y)), y / factor**2, atol=1e-14)


@pytest.mark.parametrize(("factor", "shape"), [(1, (5, 6)), (2, (16, 14)), (3, (15, 9)), (4, (8, 32))])
def test_bicubic_equals_an_antialiased_resize_of_the_image_extended_by_its_border(
    factor: int, shape: tuple[int, int]
) -> None:
    x = _random(*shape)
    wide = torch.nn.functional.pad(x[None, None], [4 * factor] * 4, mode="replicate")
    expected = torch.nn.functional.interpolate(wide, scale_factor=1 / factor, mode="bicubic", antialias=True)
    result = SuperResolution(shape, factor, "bicubic")(x)
    assert torch.allclose(result, expected[0, 0, 4:-4, 4:-4], atol=1e-12)


def test_bicubic_reproduces_a_constant_and_a_ramp_away_from_the_border() -> None:
    operator = SuperResolution((24, 32), 4, "bicubic")
    assert torch.allclose(operator(torch.full((24, 32), 3.0).double()), torch.tensor(3.0).double(), atol=1e-14)
    ramp = 2.0 * torch.arange(24).double()[:, None] - 0.5 * torch.arange(32).double()
    at_centres = 2.0 * (4 * torch.arange(6).double() + 1.5)[:, None] - 0.5 * (4 * torch.arange(8).double() + 1.5)
    assert torch.allclose(operator(ramp)[2:-2, 2:-2], at_centres[2:-2, 2:-2], atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 8), (7, 5)])
@pytest.mark.parametrize("taps", [(3, 3), (4, 5), (1, 2)])
def test_blur_is_the_circular_convolution(
    shape: tuple[int, int], taps: tuple[int, int], is_complex: bool
) -> None:
    kernel = _random(*taps)
    x = _random(2, *shape, dtype=torch.complex128 if is_complex else torch.float64)
    expected = torch.zeros_like(x)
    for i in range(taps[0]):
        for j in range(taps[1]):
            expected += kernel[i, j] * torch.roll(x, (i - taps[0] // 2, j - taps[1] // 2), dims=(-2, -1))
    result = Blur(shape, kernel, is_complex=is_complex)(x)
    assert result.dtype == x.dtype
    assert torch.allclose(result, expected, atol=1e-13)


def test_pinv_takes_frequencies_below_the_cutoff_as_not_measured() -> None:
    # Of gain 30: the cut-off is relative to it.
    operator = Blur((12, 15), 30 * gaussian_kernel(9, 1.5))
    impulse = torch.zeros(12, 15, dtype=torch.float64)
    impulse[0, 0] = 1.0
    passed = torch.fft.fft2(operator(impulse)).abs() > 0.05 * operator.norm()
    assert 0 < int(passed.sum()) < passed.numel()
    x = _random(12, 15)
    spectrum = torch.fft.fft2(operator.pinv(operator(x), cutoff=0.05))
    assert torch.allclose(spectrum, torch.fft.fft2(x) * passed, atol=1e-11)
    for cutoff in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="cutoff"):
            operator.pinv(x, cutoff=cutoff)


@pytest.mark.parametrize(("size", "std"), [(1, 2.0), (3, 0.5), (9, 1.7), (61, 3.0)])
def test_gaussian_kernel_has_its_taps_its_symmetry_and_its_width(size: int, std: float) -> None:
    kernel = gaussian_kernel(size, std)
    assert kernel.shape == (size, size)
    assert bool((kernel > 0).all())
    assert torch.equal(kernel, kernel.flip(0)) and torch.equal(kernel, kernel.flip(1)) and torch.equal(kernel, kernel.T)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-14)
    if size > 1:
        centre = size // 2
        ratio = float(kernel[centre, centre + 1] / kernel[centre, centre])
        assert ratio == pytest.approx(math.exp(-1 / (2 * std**2)))


def _spread(kernel: Tensor) -> Tensor:
    """Return the variances of a kernel along its principal axes, ascending, about the central pixel."""
    offset = torch.arange(kernel.shape[0]).double() - kernel.shape[0] // 2
    mixed = (kernel * torch.outer(offset, offset)).sum()
    rows, columns = (kernel.sum(1) * offset**2).sum(), (kernel.sum(0) * offset**2).sum()
    return torch.linalg.eigvalsh(torch.stack([rows, mixed, mixed, columns]).reshape(2, 2))


@pytest.mark.parametrize("size", [1, 3, 31])
@pytest.mark.parametrize("intensity", [0.0, 0.5, 1.0])
def test_motion_kernel_is_a_centred_distribution(size: int, intensity: float) -> None:
    offset = torch.arange(size).double() - size // 2
    for seed in range(20):
        kernel = motion_kernel(size, intensity, generator=_generator(seed))
        assert kernel.shape == (size, size)
        assert bool((kernel >= 0).all())
        assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-13)
        assert abs(float((kernel.sum(0) * offset).sum())) < 1e-12
        assert abs(float((kernel.sum(1) * offset).sum())) < 1e-12


def test_motion_is_straight_at_intensity_zero_and_winds_with_it() -> None:
    def mean_spread(intensity: float) -> Tensor:
        kernels = [motion_kernel(31, intensity, generator=_generator(seed)) for seed in range(40)]
        return torch.stack([_spread(kernel) for kernel in kernels]).mean(dim=0)

    straight, bent, wound = (mean_spread(intensity) for intensity in (0.0, 0.3, 1.0))
    # Bilinear drawing adds at most 1/4 pixel^2 to the variances of a line of 30 pixels, 0 and 75.
    assert float(straight[0]) < 0.25
    assert float(straight[1]) == pytest.approx(75.0, abs=1.5)
    assert float(straight[1]) > 1.1 * float(bent[1]) > 1.2 * float(wound[1])
    assert float(wound[0]) > float(straight[0]) + 1.0


def test_same_seed_same_kernel_and_mask_other_seed_another() -> None:
    for draw in (
        lambda seed: motion_kernel(15, 0.5, generator=_generator(seed)),
        lambda seed: random_pixel_mask((9, 9), 0.5, generator=_generator(seed)),
    ):
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))


def test_missing_pixels_are_zero_and_do_not_reach_the_adjoint() -> None:
    mask = box_mask((6, 7), (2, 3), position=(1, 0))
    operator = Inpainting(mask)
    x = _random(6, 7).masked_fill(~mask, math.nan)
    for result in (operator(x), operator.adjoint(x)):
        assert torch.equal(result[mask], x[mask])
        assert bool((result[~mask] == 0).all()) and not bool(torch.signbit(result[~mask]).any())
    assert torch.equal(Inpainting(mask.float()).mask, mask)


@pytest.mark.parametrize(
    ("box", "position", "rows", "columns"),
    [
        (4, None, slice(2, 6), slice(2, 6)),
        ((3, 2), None, slice(3, 6), slice(3, 5)),
        ((2, 9), (6, 0), slice(6, 8), slice(0, 9)),
    ],
)
def test_box_mask_has_its_hole_where_asked(
    box: int | tuple[int, int], position: tuple[int, int] | None, rows: slice, columns: slice
) -> None:
    expected = torch.ones(8, 9, dtype=torch.bool)
    expected[rows, columns] = False
    assert torch.equal(box_mask((8, 9), box, position=position), expected)


@pytest.mark.parametrize(("shape", "missing"), [((8, 9), 0.0), ((8, 9), 0.5), ((31, 17), 0.921), ((1, 3), 0.6)])
def test_random_pixel_mask_removes_exactly_the_count(shape: tuple[int, int], missing: float) -> None:
    mask = random_pixel_mask(shape, missing, generator=_generator())
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert int((~mask).sum()) == round(missing * shape[0] * shape[1])


def test_random_pixel_mask_is_uniform() -> None:
    kept = sum(random_pixel_mask((4, 5), 0.7, generator=_generator(s)).double() for s in range(500)) / 500
    assert bool(((kept - 0.3).abs() < 0.1).all())


def test_later_changes_of_the_inputs_change_nothing() -> None:
    kernel, mask, matrix = _random(3, 3), torch.ones(4, 6, dtype=torch.bool), _random(4, 4)
    operators = [Blur((4, 6), kernel), Inpainting(mask), Separable(matrix, _random(5, 6))]
    before = [operator(_random(4, 6)) for operator in operators]
    kernel.zero_(), mask.zero_(), matrix.zero_()
    fresh = [operator.to("cpu") for operator in operators]
    assert all(torch.equal(op(_random(4, 6)), y) for op, y in zip(fresh, before, strict=True))


def test_repr_names_factor_and_kernel() -> None:
    operator = SuperResolution((8, 12), 4, "bicubic")
    assert repr(operator) == "SuperResolution: real (8, 12) -> (2, 3), factor 4, bicubic"
    assert (operator.factor, operator.kernel) == (4, "bicubic")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: SuperResolution((8, 9), 2), GeometryError, "8x9"),
        (lambda: SuperResolution((9, 8), 2), GeometryError, "9x8"),
        (lambda: SuperResolution((8, 8, 8), 2), GeometryError, r"\(H, W\)"),
        (lambda: SuperResolution((8, 8), 0), ConfigError, "factor"),
        (lambda: SuperResolution((8, 8), 2.0), ConfigError, "factor"),
        (lambda: SuperResolution((8, 8), 2, "lanczos"), ConfigError, "mean, bicubic"),
        (lambda: Separable(torch.ones(3), torch.ones(3, 3)), GeometryError, r"row matrix.*\(3,\)"),
        (lambda: Separable(torch.ones(3, 3), torch.ones(3, 3) + 0j), ConfigError, "column matrix"),
        (lambda: Separable(torch.ones(3, 3) / 0, torch.ones(3, 3)), ConfigError, "finite"),
        (lambda: Blur((8, 8), torch.ones(3)), GeometryError, r"\(3,\)"),
        (lambda: Blur((8, 8), torch.ones(3, 9)), GeometryError, r"\(3, 9\) exceeds"),
        (lambda: Blur((8, 8), torch.zeros(3, 3)), ConfigError, "0 everywhere"),
        (lambda: Blur((8, 8), torch.full((3, 3), math.nan)), ConfigError, "finite"),
        (lambda: Inpainting(torch.zeros(4, 4)), GeometryError, "keeps no pixel"),
        (lambda: Inpainting(torch.ones(4)), GeometryError, r"\(4,\)"),
        (lambda: Inpainting(torch.full((4, 4), 0.5)), ConfigError, "0 and 1"),
        (lambda: Inpainting(torch.full((4, 4), math.nan)), ConfigError, "0 and 1"),
        (lambda: gaussian_kernel(4, 1.0), ConfigError, "odd"),
        (lambda: gaussian_kernel(-3, 1.0), ConfigError, "odd"),
        (lambda: gaussian_kernel(5, 0.0), ConfigError, "std"),
        (lambda: gaussian_kernel(5, math.inf), ConfigError, "std"),
        (lambda: motion_kernel(8, 0.5, generator=_generator()), ConfigError, "odd"),
        (lambda: motion_kernel(9, 1.5, generator=_generator()), ConfigError, "intensity"),
        (lambda: motion_kernel(9, math.nan, generator=_generator()), ConfigError, "intensity"),
        (lambda: box_mask((8, 8), 9), GeometryError, "9x9"),
        (lambda: box_mask((8, 8), 8), GeometryError, "leave"),
        (lambda: box_mask((8, 8), 0), GeometryError, "0x0"),
        (lambda: box_mask((8, 8), 4, position=(5, 0)), GeometryError, r"\(5, 0\)"),
        (lambda: box_mask((8, 8), 4, position=(0, -1)), GeometryError, r"\(0, -1\)"),
        (lambda: random_pixel_mask((8, 8), 1.0, generator=_generator()), ConfigError, "missing"),
        (lambda: random_pixel_mask((8, 8), 0.999, generator=_generator()), ConfigError, "leave"),
        (lambda: random_pixel_mask((8, 8), -0.1, generator=_generator()), ConfigError, "missing"),
        (lambda: random_pixel_mask((8,), 0.1, generator=_generator()), GeometryError, r"\(H, W\)"),
        (lambda: gaussian_noise((2,), -1.0, _generator()), ConfigError, "standard deviation"),
        (lambda: gaussian_noise((2,), 1.0, _generator(), dtype=torch.complex64), ConfigError, "floating-point"),
        (lambda: gaussian_noise((2,), 1.0, _generator(), dtype=torch.int64), ConfigError, "floating-point"),
    ],
)
def test_bad_input_is_one_typed_error(make: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_real_noise_has_its_level_and_its_seed() -> None:
    noise = gaussian_noise((300, 300), 2.5, _generator(), dtype=torch.float64)
    assert noise.dtype == torch.float64
    assert float(noise.std()) == pytest.approx(2.5, rel=0.01)
    assert abs(float(noise.mean())) < 0.04
    assert gaussian_noise((3,), 1.0, _generator()).dtype == torch.float32
    assert torch.equal(gaussian_noise((5,), 1.0, _generator()), gaussian_noise((5,), 1.0, _generator()))
    assert bool((gaussian_noise((5,), 0.0, _generator()) == 0).all())

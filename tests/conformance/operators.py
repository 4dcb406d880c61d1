"""The operator battery: register one case, inherit every test of `OperatorConformance`.

A test module subclasses `OperatorConformance`; the cases live in `OPERATOR_CASES`. A case builds a *small*
operator (its dense matrix is formed) and, where construction depends on the size, may give a full-size one
that is probed instead. With a scan, an operator of images of `SCAN_SHAPE` that measures enough to reconstruct them,
every solver that takes it is run on it too (tests/solvers/test_every_operator.py).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import (
    Blur,
    CartesianMRI,
    CoilMaps,
    ConeBeamCT,
    FanBeamCT,
    FourierTransform,
    Identity,
    Inpainting,
    LinearOperator,
    NonuniformFFT,
    ParallelBeamCT,
    PerCoil,
    Sampling,
    Separable,
    SuperResolution,
    Weighted,
    birdcage_maps,
    box_mask,
    check_operator,
    gaussian_kernel,
    gaussian_mask_2d,
    motion_kernel,
    random_mask,
    random_pixel_mask,
)


@dataclass(frozen=True)
class OperatorCase:
    """One operator under test."""

    name: str
    make_small: Callable[[], LinearOperator]
    make_large: Callable[[], LinearOperator] | None = None
    make_scan: Callable[[], LinearOperator] | None = None


#: ``(H, W)`` of the images of the scans.
SCAN_SHAPE = (32, 32)


class BoxBlur(LinearOperator):
    """An operator as a user writes one: two methods, and a norm of nine."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape, shape, is_complex=False)

    def _forward(self, x: Tensor) -> Tensor:
        rows = x + x.roll(1, -2) + x.roll(-1, -2)
        return rows + rows.roll(1, -1) + rows.roll(-1, -1)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _points(height: int, width: int) -> Tensor:
    return gaussian_mask_2d((height, width), 2.5, 4, generator=_generator()).mask


def _columns(height: int, width: int) -> Tensor:
    return random_mask((height, width), 2.5, 0.2, generator=_generator()).mask


def _rough_maps(coils: int, height: int, width: int) -> Tensor:
    return torch.randn(coils, height, width, dtype=torch.complex128, generator=_generator())


def _weights(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=_generator()).sub(0.1).clamp_min(0)


def _matrix(outputs: int, inputs: int, rank: int) -> Tensor:
    draw = torch.randn(outputs + inputs, rank, dtype=torch.float64, generator=_generator())
    return draw[:outputs] @ draw[outputs:].mT


def _parallel(shape: tuple[int, int] = (9, 8), views: int = 7, bins: int = 13, **options: Any) -> ParallelBeamCT:
    angles = torch.arange(views) * math.pi / views + 0.1
    options = {"pixel_size": 1.1, "bin_size": 0.9, "centre": bins / 2 - 0.8} | options
    return ParallelBeamCT(shape, angles, bins, **options)


def _fan(shape: tuple[int, int] = (9, 8), views: int = 7, bins: int = 13, **options: Any) -> FanBeamCT:
    angles = torch.arange(views) * 2 * math.pi / views + 0.1
    radius = 2.5 * max(shape) * options.get("pixel_size", 1.0)
    options = {"pixel_size": 1.1, "bin_size": 1.6, "centre": bins / 2 - 0.8} | options
    return FanBeamCT(shape, angles, bins, source_origin=radius, origin_detector=radius / 2, **options)


def _cone() -> ConeBeamCT:
    angles = torch.arange(3) * 2 * math.pi / 3 + 0.3
    return ConeBeamCT(
        (2, 4, 3), angles, (3, 5), source_origin=12.0, origin_detector=6.0, bin_size=(1.5, 1.4), centre=(0.8, 2.2)
    )


def _spokes(spokes: int, samples: int) -> Tensor:
    """Frequencies ``(spokes samples, 2)`` of a radial trajectory."""
    along = (torch.arange(samples) - samples // 2) / samples
    angles = torch.arange(spokes) * math.pi / spokes
    return torch.stack([torch.outer(angles.sin(), along), torch.outer(angles.cos(), along)], -1).reshape(-1, 2)


def _radial_coils(shape: tuple[int, int], spokes: int, coils: int) -> LinearOperator:
    return NonuniformFFT(shape, _spokes(spokes, 2 * shape[0])) @ CoilMaps(birdcage_maps(coils, shape))


def _views(count: int, turn: float) -> Tensor:
    return torch.arange(count) * turn / count


OPERATOR_CASES: list[OperatorCase] = [
    OperatorCase("identity-real", lambda: Identity((5, 6), is_complex=False)),
    OperatorCase("identity-complex", lambda: Identity((7,))),
    OperatorCase(
        "cartesian-single-even",
        lambda: CartesianMRI(_points(12, 16)),
        lambda: CartesianMRI(_points(96, 80)),
        make_scan=lambda: CartesianMRI(_columns(*SCAN_SHAPE)),
    ),
    OperatorCase("cartesian-single-odd", lambda: CartesianMRI(_points(13, 11))),
    OperatorCase("cartesian-single-twice-odd", lambda: CartesianMRI(_columns(10, 14))),
    OperatorCase(
        "cartesian-coils-points",
        lambda: CartesianMRI(_points(11, 14), _rough_maps(3, 11, 14)),
        lambda: CartesianMRI(_points(90, 77), birdcage_maps(6, (90, 77))),
        make_scan=lambda: CartesianMRI(_columns(*SCAN_SHAPE), 40 * birdcage_maps(4, SCAN_SHAPE)),
    ),
    OperatorCase("cartesian-coils-columns", lambda: CartesianMRI(_columns(9, 15), _rough_maps(3, 9, 15))),
    OperatorCase("cartesian-coils-rows", lambda: CartesianMRI(_columns(15, 9).T, _rough_maps(3, 9, 15))),
    OperatorCase("cartesian-coils-full", lambda: CartesianMRI(torch.ones(8, 9), _rough_maps(2, 8, 9))),
    OperatorCase("cartesian-one-line", lambda: CartesianMRI(torch.eye(7)[2], _rough_maps(2, 1, 7))),
    OperatorCase("adjoint", lambda: CartesianMRI(_points(8, 9), _rough_maps(2, 8, 9)).H),
    OperatorCase("gram", lambda: CartesianMRI(_points(8, 9), _rough_maps(2, 8, 9)).gram),
    OperatorCase(
        "algebra",
        lambda: (
            (0.5 - 2j) * CartesianMRI(_points(8, 9), _rough_maps(2, 8, 9))
            - CartesianMRI(_columns(8, 9), _rough_maps(2, 8, 9)) @ (3 * Identity((8, 9)))
        ),
    ),
    OperatorCase("separable-tall-and-singular", lambda: Separable(_matrix(9, 6, 6), _matrix(5, 7, 4))),
    OperatorCase(
        "mean-even",
        lambda: SuperResolution((8, 12), 4),
        lambda: SuperResolution((96, 160), 4),
        make_scan=lambda: SuperResolution(SCAN_SHAPE, 2),
    ),
    OperatorCase("mean-odd-complex", lambda: SuperResolution((9, 15), 3, is_complex=True)),
    OperatorCase(
        "bicubic-even",
        lambda: SuperResolution((12, 16), 2, "bicubic"),
        lambda: SuperResolution((160, 96), 4, "bicubic"),
    ),
    OperatorCase("bicubic-odd-complex", lambda: SuperResolution((9, 15), 3, "bicubic", is_complex=True)),
    OperatorCase(
        "blur-gaussian",
        lambda: Blur((8, 11), gaussian_kernel(5, 0.8)),
        lambda: Blur((97, 128), gaussian_kernel(31, 2.0)),
        make_scan=lambda: Blur(SCAN_SHAPE, gaussian_kernel(9, 1.0)),
    ),
    OperatorCase(
        "blur-motion-complex",
        lambda: Blur((9, 10), motion_kernel(7, 0.5, generator=_generator()), is_complex=True),
        lambda: Blur((96, 75), motion_kernel(41, 0.5, generator=_generator()), is_complex=True),
    ),
    OperatorCase("blur-gram", lambda: Blur((7, 6), motion_kernel(5, 0.2, generator=_generator())).gram),
    OperatorCase(
        "inpainting-box",
        lambda: Inpainting(box_mask((8, 9), 4)),
        make_scan=lambda: Inpainting(random_pixel_mask(SCAN_SHAPE, 0.5, generator=_generator())),
    ),
    OperatorCase(
        "inpainting-pixels-complex",
        lambda: Inpainting(random_pixel_mask((9, 7), 0.6, generator=_generator()), is_complex=True),
        lambda: Inpainting(random_pixel_mask((99, 128), 0.9, generator=_generator()), is_complex=True),
    ),
    OperatorCase(
        "nonuniform-fft",
        lambda: NonuniformFFT((8, 7), torch.rand(20, 2, generator=_generator()) - 0.5),
        lambda: NonuniformFFT((90, 77), torch.rand(3000, 2, generator=_generator()) - 0.5),
        make_scan=lambda: NonuniformFFT(SCAN_SHAPE, _spokes(40, 64)),
    ),
    OperatorCase(
        "parallel-fourier",
        _parallel,
        lambda: _parallel((64, 80), 30, 91),
        make_scan=lambda: ParallelBeamCT(SCAN_SHAPE, _views(40, math.pi), 47, pixel_size=3.0, bin_size=3.0),
    ),
    OperatorCase("parallel-replica", lambda: _parallel(replicas=1)),
    OperatorCase(
        "parallel-joseph", lambda: _parallel(mode="joseph"), lambda: _parallel((64, 80), 30, 91, mode="joseph")
    ),
    OperatorCase(
        "fan-fourier-flat",
        _fan,
        lambda: _fan((64, 80), 30, 91),
        make_scan=lambda: _fan(SCAN_SHAPE, 40, 61, pixel_size=3.0, bin_size=4.0, centre=30.0),
    ),
    OperatorCase("fan-fourier-curved-arc", lambda: _fan(detector="curved").subset(slice(2, 4))),
    OperatorCase("fan-joseph", lambda: _fan(mode="joseph"), lambda: _fan((64, 80), 30, 91, mode="joseph")),
    OperatorCase("fan-joseph-curved", lambda: _fan(mode="joseph", detector="curved")),
    OperatorCase("cone", _cone),
    OperatorCase("box-blur", lambda: BoxBlur((7, 8)), make_scan=lambda: BoxBlur(SCAN_SHAPE)),
    OperatorCase("coil-maps", lambda: CoilMaps(_rough_maps(3, 6, 5))),
    OperatorCase("fourier-transform", lambda: FourierTransform((6, 9))),
    OperatorCase("sampling", lambda: Sampling(_points(9, 8))),
    OperatorCase("per-coil", lambda: PerCoil(NonuniformFFT((5, 6), _spokes(3, 9)), 2)),
    OperatorCase(
        "radial-coils",
        lambda: _radial_coils((6, 7), 4, 3),
        lambda: _radial_coils((48, 40), 30, 5),
        make_scan=lambda: _radial_coils(SCAN_SHAPE, 20, 4),
    ),
    OperatorCase("weighted-mri", lambda: Weighted(CartesianMRI(_points(8, 9)), _weights(1, 8, 9))),
    OperatorCase("weighted-parallel", lambda: Weighted(_parallel(), _weights(7, 13))),
]


def pytest_cases(cases: list[OperatorCase]) -> pytest.MarkDecorator:
    """Parametrise a class or test over the cases."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


class OperatorConformance:
    """What every linear operator of the toolkit must do; subclass and parametrise with `pytest_cases`."""

    def test_check_operator_passes(self, case: OperatorCase) -> None:
        report = check_operator(case.make_small())
        assert report.passed, str(report)
        assert any(check.name.startswith("adjoint (dense)") for check in report.checks)

    def test_check_operator_passes_at_full_size(self, case: OperatorCase) -> None:
        if case.make_large is None:
            pytest.skip("the case has one size")
        report = check_operator(case.make_large(), make_small=case.make_small, max_dense_entries=1 << 17)
        assert report.passed, str(report)

    def test_shapes_with_any_batch(self, case: OperatorCase) -> None:
        operator = case.make_small()
        for batch in ((), (1,), (3,), (2, 3), (0,)):
            x = _image(operator, *batch)
            y = operator(x)
            assert y.shape == (*batch, *operator.range_shape)
            assert operator.adjoint(y).shape == x.shape
            assert operator.gram(x).shape == x.shape

    def test_gradcheck(self, case: OperatorCase) -> None:
        operator = case.make_small()
        x = _image(operator).to(_double(operator)).requires_grad_()
        # The map is linear: random directions are as good as the full Jacobian, and fast.
        assert torch.autograd.gradcheck(operator, (x,), fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(operator, (x,), fast_mode=True)

    def test_saves_no_tensor_for_backward(self, case: OperatorCase) -> None:
        operator = case.make_small()
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            operator(_image(operator).requires_grad_())
        assert not saved

    def test_vmap_and_functional_gradient(self, case: OperatorCase) -> None:
        operator = case.make_small()
        x = _image(operator, 3)
        assert torch.allclose(torch.func.vmap(operator)(x), operator(x), atol=1e-6)
        _, tangent = torch.func.jvp(operator, (x,), (2 * x,))
        assert torch.allclose(tangent, 2 * operator(x), rtol=1e-4, atol=1e-5)

    def test_norm_bounds_the_gain(self, case: OperatorCase) -> None:
        operator = case.make_small()
        x = _image(operator, 8)
        gain = torch.linalg.vector_norm(operator(x).flatten(1), dim=1) / torch.linalg.vector_norm(x.flatten(1), dim=1)
        assert float(gain.max()) <= operator.norm() * 1.01
        assert operator.norm() == operator.norm()

    def test_answers_about_a_measurement(self, case: OperatorCase) -> None:
        operator = case.make_small()
        seen = operator.measured
        assert seen is None or (seen.dtype == torch.bool and bool(seen.any()))
        everywhere = torch.ones(operator.range_shape, dtype=torch.bool)
        assert operator.n_measured() == int((everywhere if seen is None else everywhere & seen).sum())
        assert operator.n_measured(torch.zeros(operator.range_shape)) == 0
        json.dumps(operator.facts(), allow_nan=False)
        diagonal = operator.fourier_diagonal().values
        assert diagonal.shape == operator.domain_shape and bool((diagonal >= 0).all())
        y = operator(_image(operator, 2))
        assert operator.start(y).shape == (2, *operator.domain_shape)

    def test_answers_follow_the_units(self, case: OperatorCase) -> None:
        """What is said of a scan in other units is the same in those units."""
        if case.make_scan is None:
            pytest.skip("the case has no scan")
        operator = case.make_scan()
        other = 250.0 * operator
        y = operator(_image(operator).abs()) + torch.randn(operator.range_shape, generator=_generator())
        torch.testing.assert_close(other.start(250 * y), operator.start(y), rtol=1e-3, atol=1e-4)
        # Conjugate gradients in single precision differ by a percent.
        assert other.noise_std(250 * y) == pytest.approx(250 * operator.noise_std(y), rel=2e-2)
        assert (other.image_unit, other.facts()) == (operator.image_unit, operator.facts())

    def test_adjoint_of_adjoint_is_the_operator(self, case: OperatorCase) -> None:
        operator = case.make_small()
        x = _image(operator)
        assert torch.equal(operator.H.H(x), operator(x))
        assert operator.H.domain_shape == operator.range_shape

    def test_prox_is_stationary_and_pinv_solves_the_normal_equations(self, case: OperatorCase) -> None:
        operator = case.make_small()
        x0, x = _image(operator, 2).to(_double(operator)), _image(operator, 2).to(_double(operator))
        y = operator(x)
        weight = torch.tensor([0.3, 2.0])
        solution = operator.prox(x0, y, weight, max_iter=1000, rtol=1e-12)
        column = weight.double().reshape(2, *[1] * len(operator.domain_shape))
        slope = operator.adjoint(operator(solution) - y) + column * (solution - x0)
        scale = operator.norm() ** 2 + 2
        assert float(slope.abs().max()) < 1e-8 * scale
        fit = operator(operator.pinv(y, max_iter=3000, rtol=1e-12))
        assert float(torch.linalg.vector_norm(fit - y)) < 1e-6 * float(torch.linalg.vector_norm(y))

    def test_prox_refuses_bad_weights(self, case: OperatorCase) -> None:
        operator = case.make_small()
        x = _image(operator)
        for weight in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match="weight"):
                operator.prox(x, operator(x), weight)
        with pytest.raises(GeometryError):
            operator.prox(_image(operator, 2), operator(_image(operator, 2)), torch.ones(3))

    def test_is_immutable(self, case: OperatorCase) -> None:
        operator = case.make_small()
        with pytest.raises(AttributeError, match="immutable"):
            operator.factor = 2.0  # type: ignore[assignment]

    def test_copies_and_casts_keep_the_map(self, case: OperatorCase) -> None:
        operator = case.make_small()
        x = _image(operator)
        before = operator(x)
        assert torch.equal(copy.deepcopy(operator)(x), before)
        twin = operator.to(torch.float64)
        assert torch.allclose(twin(x), before, rtol=1e-4, atol=1e-5)
        assert torch.equal(operator(x), before)

    def test_repr_shows_domain_and_range(self, case: OperatorCase) -> None:
        operator = case.make_small()
        assert f"{operator.domain_shape} -> {operator.range_shape}" in repr(operator)

    def test_wrong_input_is_one_typed_error(self, case: OperatorCase) -> None:
        operator = case.make_small()
        with pytest.raises(GeometryError, match=str(operator.domain_shape[-1])):
            operator(_image(operator)[..., :-1])
        with pytest.raises(ConfigError):
            operator(_image(operator).abs().to(torch.int64))
        with pytest.raises(ConfigError):
            operator([1.0])  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            operator(_image(operator), normalise=True)


def _double(operator: LinearOperator) -> torch.dtype:
    return torch.complex128 if operator.is_complex else torch.float64


def _image(operator: LinearOperator, *batch: int) -> Tensor:
    dtype = torch.complex64 if operator.is_complex else torch.float32
    return torch.randn(*batch, *operator.domain_shape, dtype=dtype, generator=_generator())

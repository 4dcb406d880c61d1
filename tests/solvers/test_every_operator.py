"""Every operator with every solver that takes it, through the one call, in any units."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.conformance.operators import OPERATOR_CASES, SCAN_SHAPE, BoxBlur
from tests.conformance.solvers import SOLVER_CASES, gaussian_prior, phantom
from treg_med import reconstruct
from treg_med.data.records import Measurement, Reconstruction
from treg_med.errors import ConfigError, GeometryError
from treg_med.operators import LinearOperator, complex_gaussian_noise, gaussian_noise

SCANS = {case.name: case.make_scan for case in OPERATOR_CASES if case.make_scan is not None}
# The first case of each solver is the one with its usual settings.
SOLVERS = {case.name: case for case in reversed(SOLVER_CASES)}
NOISE = 0.03
#: Methods that ask for a kind of operator, and say so.
_PARTICULAR = {"fbp", "sirt"}
#: The quick ones, run in every unit; the others run in their own unit here and in all units where time allows.
_QUICK = {"zero-filled", "tv", "wavelet", "cgls", "treg"}


@cache
def _scan(name: str) -> tuple[LinearOperator, Tensor, Tensor, float]:
    """Operator, true image, data and noise level."""
    operator = SCANS[name]()
    truth = phantom() if operator.is_complex else phantom().abs()
    if operator.image_unit:
        truth = 0.02 * truth
    clean = operator(truth)
    level = NOISE * float(clean.abs().square().sum().div(operator.n_measured()).sqrt())
    draw = complex_gaussian_noise if operator.is_complex else gaussian_noise
    y = clean + draw(tuple(clean.shape), level, torch.Generator().manual_seed(5))
    return operator, truth, y if operator.measured is None else y * operator.measured, level


@cache
def _reconstructed(scan: str, name: str, unit: float) -> Reconstruction:
    solver = SOLVERS[name]
    operator, truth, y, level = _scan(scan)
    data = Measurement(
        unit * y, operator if unit == 1 else unit * operator, noise_std=unit * level, scale=1 / float(truth.abs().max())
    )
    prior = None if solver.prior is None else gaussian_prior()
    try:
        return reconstruct(data, solver=solver.make(), prior=prior, seed=1, device="cpu")
    except ConfigError as error:
        if name not in _PARTICULAR:
            raise
        pytest.skip(str(error))


def _error(image: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.vector_norm(image.abs() - truth.abs()))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scan", SCANS)
def test_is_better_than_its_start(scan: str, solver: str) -> None:
    operator, truth, y, _ = _scan(scan)
    rec = _reconstructed(scan, solver, 1.0)
    assert rec.image.dtype == y.dtype
    assert rec.residual <= SOLVERS[solver].residual[1]
    # Least squares shrinks an image whose data leave nothing to regularise by a hundredth.
    assert _error(rec.image, truth) <= 1.03 * _error(operator.start(y), truth)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
@pytest.mark.parametrize(
    "solver", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in SOLVERS]
)
@pytest.mark.parametrize("scan", SCANS)
def test_units_make_no_difference(scan: str, solver: str, unit: float) -> None:
    truth = _scan(scan)[1]
    first, second = (_error(_reconstructed(scan, solver, u).image, truth) for u in (1.0, unit))
    assert abs(20 * math.log10(second / first)) < 0.1


@pytest.mark.parametrize(
    "scan", ["radial-coils", "cartesian-coils-points", "nonuniform-fft", "blur-gaussian", "box-blur"]
)
def test_an_unknown_noise_level_is_found(scan: str) -> None:
    """Total variation, which trusts the level, loses nothing by having to find it; the phase is another question."""
    operator, truth, y, level = _scan(scan)
    known, found = (
        reconstruct(Measurement(y, operator, noise_std=told), solver="tv", phase="none", device="cpu")
        for told in (level, None)
    )
    # A thousand numbers, of which images explain most, tell the level to about 7 percent.
    assert found.settings["noise_std"] == pytest.approx(level, rel=0.15)
    assert 20 * math.log10(_error(found.image, truth) / _error(known.image, truth)) < 0.5


def _scaled_by(factor: float) -> LinearOperator:
    return factor * SCANS["box-blur"]()


class _Talkative(BoxBlur):
    def noise_std(self, y: Tensor, weights: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return y.abs()


@pytest.mark.parametrize(
    ("operator", "error", "told"),
    [
        (_scaled_by(0.0), GeometryError, "norm above zero, got 0"),
        (_scaled_by(float("1e38")) @ _scaled_by(float("1e38")), GeometryError, "norm above zero, got (inf|nan)"),
        (_Talkative(SCAN_SHAPE), ConfigError, r"noise_std\(y\) to return one number.*tensor \(32, 32\)"),
    ],
)
def test_operators_that_nothing_can_be_done_with_are_refused(
    operator: LinearOperator, error: type[Exception], told: str
) -> None:
    y = torch.rand(operator.range_shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(error, match=told):
        reconstruct(Measurement(y, operator), solver="tv", device="cpu")

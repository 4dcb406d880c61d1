"""The solver battery: register one case, inherit every check of `validate_solver`.

`SOLVER_CASES` is the one registry; a test module runs `validate_solver` on each case. A case says how to
build the solver, which prior it needs and where its residual must lie on one of the battery's own small measurements:
complex multi-coil k-space, or the weighted sinogram of an attenuation.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from treg_med.data.records import Measurement, Reconstruction
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import CartesianMRI, Inpainting, birdcage_maps, complex_gaussian_noise, random_mask
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.priors import GaussianPrior
from treg_med.solvers import Progress, available_presets, get_solver
from treg_med.solvers.base import Solver
from treg_med.solvers.problem import residual_in_noise_units

SHAPE = (32, 32)
NOISE = 0.02
MU_WATER = 0.0192
PHOTONS = 2e4


@dataclass(frozen=True)
class SolverCase:
    """One solver under test."""

    id: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    prior: Callable[[], Any] | None = None
    residual: tuple[float, float] = (0.8, 1.1)
    data: Callable[[], Measurement] = field(default=lambda: measurement())
    identity: bool = True

    def make(self) -> Solver:
        return get_solver(self.name, **self.settings)


def phantom() -> Tensor:
    """Disc with an inset and a smooth phase, maximum one."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    magnitude = 0.6 * (rows.square() + columns.square() < 0.6) + 0.4 * ((rows - 0.2).abs() + columns.abs() < 0.35)
    return torch.polar(magnitude, 0.6 * rows + 0.4 * columns * rows)


@cache
def gaussian_prior() -> GaussianPrior:
    """A smooth prior of the battery's image size for solvers that need one."""
    index = torch.arange(SHAPE[0], dtype=torch.float32)
    points = torch.stack(torch.meshgrid(index, index, indexing="ij"), -1).reshape(-1, 2)
    covariance = 0.3**2 * torch.exp(-torch.cdist(points, points) / 4) + 1e-4 * torch.eye(len(points))
    return GaussianPrior({"": 2 * phantom().abs() - 1}, covariance)


@cache
def measurement(coils: int = 4) -> Measurement:
    """A small simulated multi-coil measurement with known noise."""
    generator = torch.Generator().manual_seed(3)
    mask = random_mask(SHAPE, 2.0, 0.2, generator=generator).mask
    operator = CartesianMRI(mask, birdcage_maps(coils, SHAPE) if coils > 1 else None)
    clean = operator(phantom())
    y = clean + complex_gaussian_noise(tuple(clean.shape), NOISE, generator) * operator.mask
    return Measurement(y=y, operator=operator, noise_std=NOISE, target=phantom())


@cache
def ct_measurement() -> Measurement:
    """A small simulated parallel-beam sinogram in physical units, with the weights of its counts."""
    generator = torch.Generator().manual_seed(4)
    angles = torch.arange(20, dtype=torch.float64) * math.pi / 20
    operator = ParallelBeamCT(SHAPE, angles, 47, pixel_size=3.0, bin_size=3.0)
    image = 2 * MU_WATER * phantom().abs()
    counts = torch.poisson(PHOTONS * torch.exp(-operator(image)), generator=generator).clamp_min(1)
    return Measurement(
        y=-torch.log(counts / PHOTONS),
        operator=operator,
        noise_std=float(counts.mean()) ** -0.5,
        scale=1 / (2 * MU_WATER),
        target=image,
        weights=counts / counts.mean(),
        mu_water=MU_WATER,
    )


SOLVER_CASES: list[SolverCase] = [
    SolverCase("zero-filled", "zero-filled", residual=(0.9, 10.0)),
    SolverCase("cg-sense", "cg-sense"),
    SolverCase("cg-sense-early", "cg-sense", {"rule": "early-stopping"}, residual=(0.7, 1.0)),
    SolverCase("tv", "tv", {"max_iterations": 20}),
    SolverCase("tv-complex", "tv", {"phase": "none", "max_iterations": 20}),
    SolverCase("tv-fixed-weight", "tv", {"weight": 0.2, "max_iterations": 20}),
    SolverCase("wavelet", "wavelet"),
    SolverCase("treg", "treg", {"steps": 2}, prior=gaussian_prior),
    *(
        SolverCase(name, name, {"steps": 3}, prior=gaussian_prior)
        for name in ("ldps", "psld", "mpgd", "dds", "diffpir", "projdiff", "p2l")
    ),
    SolverCase(
        "resample", "resample", {"steps": 4, "hard_every": 2, "latent_iterations": 10}, prior=gaussian_prior
    ),
    SolverCase("ct-fbp", "fbp", {"filter": "hann"}, residual=(0.8, 10.0), data=ct_measurement, identity=False),
    SolverCase("ct-sirt", "sirt", residual=(0.8, 2.0), data=ct_measurement),
    SolverCase("ct-cgls", "cgls", {"max_iterations": 5}, residual=(0.8, 2.0), data=ct_measurement),
    SolverCase("ct-tv", "tv", {"max_iterations": 20}, residual=(0.8, 1.5), data=ct_measurement),
    SolverCase("ct-pwls-tv", "pwls-tv", {"max_iterations": 25}, data=ct_measurement),
    SolverCase("ct-wavelet", "wavelet", residual=(0.8, 1.2), data=ct_measurement),
    # Two steps of this length magnify the rounding of a batch a thousandfold.
    SolverCase("ct-treg", "treg", {"steps": 4}, prior=gaussian_prior, residual=(0.6, 1.1), data=ct_measurement),
    SolverCase("ct-dds", "dds", {"steps": 3}, prior=gaussian_prior, residual=(0.6, 1.1), data=ct_measurement),
    SolverCase("ct-ldps", "ldps", {"steps": 3}, prior=gaussian_prior, residual=(0.6, 1.1), data=ct_measurement),
]


def validate_solver(case: SolverCase) -> None:
    """Run every check of the battery on one case."""
    for check in CHECKS:
        check(case)


def _run(case: SolverCase, data: Measurement | None = None, **keywords: Any) -> Reconstruction:
    keywords.setdefault("generator", torch.Generator().manual_seed(5))
    prior = None if case.prior is None else case.prior()
    return case.make()(case.data() if data is None else data, prior=prior, **keywords)


def _close(left: Tensor, right: Tensor, tolerance: float) -> None:
    error = float((left - right).norm() / right.norm())
    assert error <= tolerance, f"relative difference {error:.2e} exceeds {tolerance:.0e}"


def check_record(case: SolverCase) -> None:
    """The record holds what it promises and the residual is the one of the image."""
    data = case.data()
    rec = _run(case)
    assert data.target is not None
    assert rec.image.shape == SHAPE
    assert rec.image.dtype == data.target.dtype
    assert rec.solver == case.name == case.make().name
    assert rec.measurement is data
    assert rec.seconds > 0
    assert rec.peak_memory_mb > 0
    again = residual_in_noise_units(data.operator, rec.image, data.y, data.noise_std or math.nan, data.weights)
    assert math.isclose(rec.residual, float(again), rel_tol=1e-3, abs_tol=1e-4)
    low, high = case.residual
    assert low <= rec.residual <= high, f"residual {rec.residual:.3f} not in [{low}, {high}]"
    for setting in dataclasses.fields(case.make()):
        assert setting.name in rec.settings


def check_inputs_untouched(case: SolverCase) -> None:
    """Neither the data nor the global random state is changed, and a seed decides everything."""
    before, state = case.data().y.clone(), torch.get_rng_state()
    first, second = _run(case), _run(case)
    assert torch.equal(case.data().y, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.image, second.image)


def check_units(case: SolverCase) -> None:
    """Raw units do not matter: data times c give an image times c, with a matching or a default scale."""
    data, factor = case.data(), 2.0**-14
    assert data.noise_std is not None
    small = replace(data, y=data.y * factor, noise_std=data.noise_std * factor, scale=data.scale / factor, target=None)
    if data.mu_water is not None:
        small = replace(small, mu_water=data.mu_water * factor)
    reference = _run(case).image
    _close(_run(case, small).image / factor, reference, 1e-4)
    unset = _run(case, replace(small, scale=1.0))
    assert any("scale" in message for message in unset.warnings)
    assert abs(unset.residual - _run(case).residual) < 0.1


def check_batch(case: SolverCase) -> None:
    """An item of a batch gets the image it gets alone."""
    data = case.data()
    other = data.y.flip(0) * 0.7
    together = _run(case, replace(data, y=torch.stack([data.y, other]), target=None)).image
    assert together.shape == (2, *SHAPE)
    for item, y in zip(together, (data.y, other), strict=True):
        _close(item, _run(case, replace(data, y=y, target=None)).image, 2e-3)


def check_progress(case: SolverCase) -> None:
    """The callback sees ordered steps, may end the work with the image so far, or interrupt it."""
    seen: list[Progress] = []
    rec = _run(case, callback=seen.append)
    for progress in seen:
        assert 1 <= progress.step <= progress.total
    assert len(rec.history) == len(seen) + 1
    assert rec.history[-1]["stage"] == "final"

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    if seen:
        with pytest.raises(KeyboardInterrupt):
            _run(case, callback=interrupt)
        for last in sorted({1, len(seen)}):
            calls: list[Progress] = []

            def stop(progress: Progress, calls: list[Progress] = calls, last: int = last) -> bool:
                calls.append(progress)
                return len(calls) == last

            stopped = _run(case, callback=stop)
            assert len(calls) == last
            assert stopped.image.shape == SHAPE
            assert any("stopped by the callback" in message for message in stopped.warnings)
        # A method may still have to finish what its last logged step began.
        _close(stopped.image, rec.image, 0.1)


def check_identity(case: SolverCase) -> None:
    """With A = 1 and no noise the data come back, to the fraction of them that stands for no noise."""
    if not case.identity:
        pytest.skip("the method knows one kind of operator")
    image = phantom().abs()
    operator = Inpainting(torch.ones(SHAPE, dtype=torch.bool))
    rec = _run(case, Measurement(y=operator(image), operator=operator, noise_std=0.0))
    assert any("noise_std is below" in message for message in rec.warnings)
    assert float((rec.image - image).abs().max()) < 3e-4


def check_autocast(case: SolverCase) -> None:
    """Under bf16 autocast the image moves by no more than rounding would have it."""
    exact = _run(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = _run(case)
    assert rounded.image.dtype == exact.image.dtype
    _close(rounded.image, exact.image, 0.05)
    assert abs(rounded.residual - exact.residual) < 0.05


def check_noise_estimate(case: SolverCase) -> None:
    """An unknown noise level is estimated and the record says so."""
    rec = _run(case, replace(case.data(), noise_std=None))
    assert any("noise_std was not given" in message for message in rec.warnings)
    assert math.isfinite(rec.residual)


def check_bad_input(case: SolverCase) -> None:
    """NaN, zeros, wrong shapes and unknown settings are refused with the right error."""
    data = case.data()
    broken = data.y.clone()
    broken.view(-1)[99] = float("nan")
    with pytest.raises(NumericsError, match="NaN or Inf"):
        _run(case, replace(data, y=broken))
    with pytest.raises(NumericsError, match="only zeros"):
        _run(case, replace(data, y=torch.zeros_like(data.y)))
    other = Inpainting(torch.ones(5, 6, dtype=torch.bool))
    with pytest.raises(GeometryError, match="expected data of shape"):
        _run(case, data, operator=other)
    with pytest.raises(ConfigError, match="no setting 'sharpness'"):
        get_solver(case.name, sharpness=3)
    with pytest.raises(ConfigError, match="preset"):
        get_solver(case.name, "nonsense")


def check_presets_and_pickle(case: SolverCase) -> None:
    """Every preset builds, the solver is frozen, and it survives pickling."""
    solver = case.make()
    for preset in available_presets(case.name):
        get_solver(case.name, preset)
    assert "default" in available_presets(case.name)
    assert pickle.loads(pickle.dumps(solver)) == solver  # noqa: S301
    for setting in dataclasses.fields(solver):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(solver, setting.name, 1)
        break


CHECKS: tuple[Callable[[SolverCase], None], ...] = (
    check_record,
    check_inputs_untouched,
    check_units,
    check_batch,
    check_progress,
    check_identity,
    check_autocast,
    check_noise_estimate,
    check_bad_input,
    check_presets_and_pickle,
)

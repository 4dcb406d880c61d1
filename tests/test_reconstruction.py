"""The one-call interface."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import treg_med as tm
from tests.conformance.solvers import SHAPE, measurement
from treg_med.errors import ConfigError, GeometryError, NumericsError, ResourceError
from treg_med.reconstruction import child_seed, reconstruct
from treg_med.solvers import Problem, Progress, Solver, get_solver


@pytest.fixture(autouse=True)
def _no_default_prior(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A classical solver must not even look at the embedded prior."""

    def refuse() -> None:
        raise AssertionError("the default prior was loaded")

    monkeypatch.setattr("treg_med.reconstruction._default_prior", refuse)
    yield


def test_same_as_the_solver() -> None:
    rec = reconstruct(measurement(), solver="wavelet", device="cpu", max_iterations=20)
    direct = get_solver("wavelet", max_iterations=20)(measurement())
    torch.testing.assert_close(rec.image, direct.image)
    assert rec.seed == 0
    assert rec.text is None
    assert rec.measurement is measurement()
    assert rec.settings["max_iterations"] == 20


def test_exported_at_the_top() -> None:
    assert tm.reconstruct is reconstruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dithered(Solver):
    """The adjoint plus noise: the smallest stochastic solver that also asks for a prior."""

    name = "dithered"
    needs_prior = True
    stochastic = True

    def solve(self, problem: Problem) -> Tensor:
        problem.nfe += 3
        image = problem.operator.adjoint(problem.y)
        return image + 0.1 * torch.randn(image.shape, generator=problem.generator)


def test_seed_decides_and_samples_are_averaged() -> None:
    def run(seed: int, samples: int = 1, slice_index: int = 0) -> tm.Reconstruction:
        data = dataclasses.replace(measurement(), geometry=tm.Geometry(shape=(*SHAPE, 4), slice_index=slice_index))
        return reconstruct(data, solver=_Dithered(), prior=object(), device="cpu", seed=seed, samples=samples)  # type: ignore[arg-type]

    first = run(1)
    assert torch.equal(first.image, run(1).image)
    assert not torch.equal(first.image, run(2).image)
    assert not torch.equal(first.image, run(1, slice_index=1).image)
    many = run(1, samples=16)
    assert many.nfe == 48
    assert many.settings["samples"] == 16
    summary = many.history[-1]
    assert summary["spread"].shape == SHAPE
    assert float(summary["spread"].square().mean().sqrt()) == pytest.approx(0.1 / many.settings["scale"], rel=0.3)
    assert len(summary["residuals"]) == 16
    assert summary["residuals"][0] == pytest.approx(first.residual)
    clean = get_solver("zero-filled")(measurement()).image
    assert float((many.image - clean).abs().mean()) < 0.4 * float((first.image - clean).abs().mean())
    assert many.residual < first.residual


def test_child_seeds() -> None:
    seeds = {child_seed(seed, part, sample) for seed in range(3) for part in range(5) for sample in range(4)}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert child_seed(0, 1, 2) == child_seed(0, 1, 2)


def test_samples_of_a_deterministic_solver() -> None:
    rec = reconstruct(measurement(), solver="zero-filled", device="cpu", samples=3)
    assert rec.settings["samples"] == 1
    assert any("draws no random numbers" in message for message in rec.warnings)


def test_solver_instance() -> None:
    solver = get_solver("cg-sense")
    rec = reconstruct(measurement(), solver=solver, device="cpu")
    assert rec.solver == "cg-sense"
    with pytest.raises(ConfigError, match="instance"):
        reconstruct(measurement(), solver=solver, target=0.8)


def test_callback() -> None:
    seen: list[Progress] = []
    reconstruct(measurement(), solver="cg-sense", device="cpu", callback=seen.append)
    assert seen
    assert seen[0].stage == "cg-sense"


def test_personal_text_is_warned_of() -> None:
    rec = reconstruct(measurement(), text="brain MRI of 12.03.1960", solver="zero-filled", device="cpu")
    assert any("personal" in message for message in rec.warnings)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"solver": "fbp"}, ConfigError),
        ({"solver": "tv", "preset": "best"}, ConfigError),
        ({"solver": "tv", "sharpness": 1}, ConfigError),
        ({"solver": "tv", "text": "a" * 10_000}, ConfigError),
        ({"solver": "tv", "seed": -1}, ConfigError),
        ({"solver": "tv", "seed": 0.5}, ConfigError),
        ({"solver": "tv", "samples": 0}, ConfigError),
        ({"solver": "tv", "device": "abacus"}, ConfigError),
        ({"solver": "tv", "device": "cuda:99"}, ResourceError),
        ({"solver": "treg", "prior": "no/such/folder"}, ResourceError),
    ],
)
def test_bad_arguments(keywords: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        reconstruct(measurement(), **keywords)  # type: ignore[arg-type]


def test_bad_data_is_refused_before_a_prior_is_loaded() -> None:
    data = measurement()
    y = data.y.clone()
    y[0, 0, 0] = float("inf")
    with pytest.raises(NumericsError, match="finite"):
        reconstruct(dataclasses.replace(data, y=y), device="cpu")
    with pytest.raises(GeometryError):
        reconstruct(dataclasses.replace(data, y=data.y[None][:0]), device="cpu")

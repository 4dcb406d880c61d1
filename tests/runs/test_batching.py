"""Slices solved side by side: the same bits whatever the batch, and failures that concern one slice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs.pointwise_prior import PointwisePrior, loop, same
from treg_med.data.records import Geometry, Measurement, Reconstruction
from treg_med.errors import ConfigError, NumericsError
from treg_med.operators import CartesianMRI, complex_gaussian_noise, random_mask
from treg_med.priors import LatentPrior
from treg_med.priors.base import Prior
from treg_med.reconstruction import reconstruct
from treg_med.runs.batched_prior import BatchedPrior, OffloadedPrior
from treg_med.runs.batching import solve_batch
from treg_med.solvers import Progress, latent_solver, treg
from treg_med.solvers.total_variation import TotalVariation

SIDE = 16
COUNT = 5
NOISE = 0.02


@cache
def _slices() -> tuple[Measurement, ...]:
    generator = torch.Generator().manual_seed(0)
    slices = []
    for index in range(COUNT):
        operator = CartesianMRI(random_mask((SIDE, SIDE), 2.0, 0.2, generator=generator).mask)
        clean = operator(torch.rand(SIDE, SIDE, generator=generator).to(torch.complex64))
        y = clean + complex_gaussian_noise(tuple(clean.shape), NOISE, generator) * operator.mask
        geometry = Geometry(shape=(SIDE, SIDE, COUNT), slice_index=index)
        slices.append(Measurement(y=y, operator=operator, noise_std=NOISE, geometry=geometry))
    return tuple(slices)


@pytest.fixture(autouse=True)
def _short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from one iteration of total variation: what is tested comes after it."""
    for module in (treg, latent_solver):
        monkeypatch.setattr(module, "TotalVariation", partial(TotalVariation, max_iterations=1))


@pytest.fixture(scope="module")
def tiny(tiny_prior_folder: Path) -> LatentPrior:
    return LatentPrior.from_pretrained(tiny_prior_folder)


def _solve(data: Measurement, prior: Any, solver: str = "treg", **settings: Any) -> Reconstruction:
    return reconstruct(data, "axial FLAIR", solver, prior, seed=3, device="cpu", **{"steps": 2, **settings})


def _in_batches(
    solve: Callable[[Measurement, Any], Reconstruction], prior: Prior, sizes: Sequence[int], network_batch: int
) -> list[Tensor]:
    slices, images = iter(_slices()), []
    for size in sizes:
        calls = [partial(solve, next(slices)) for _ in range(size)]
        images += [_image(result) for result in solve_batch(calls, prior, network_batch=network_batch)]
    return images


def _image(result: Reconstruction | Exception) -> Tensor:
    assert isinstance(result, Reconstruction), repr(result)
    return result.image


@pytest.mark.parametrize(
    ("solver", "settings"),
    [
        ("treg", {"guidance_scale": 2.0}),
        ("dds", {}),
        ("diffpir", {}),
        ("resample", {"steps": 3, "hard_every": 1, "latent_iterations": 2, "image_iterations": 2}),
        ("ldps", {}),
    ],
)
def test_results_do_not_depend_on_how_many_slices_are_in_flight(
    tiny: LatentPrior, solver: str, settings: dict[str, Any]
) -> None:
    solve = partial(_solve, solver=solver, **settings)
    alone = _in_batches(solve, tiny, (1, 1, 1, 1, 1), 3)
    for sizes in ((2, 3), (5,)):
        assert same(alone, _in_batches(solve, tiny, sizes, 3)), f"batches of {sizes}"
    plain = _solve(_slices()[0], tiny, solver, **settings).image
    torch.testing.assert_close(alone[0], plain, rtol=1e-3, atol=1e-4)
    (ungathered,) = solve_batch([partial(solve, _slices()[0])], tiny)
    assert torch.equal(plain, _image(ungathered))


def test_gathering_changes_nothing_but_the_rounding_of_the_networks() -> None:
    plain = [_solve(data, PointwisePrior()).image for data in _slices()]
    assert same(plain, _in_batches(_solve, PointwisePrior(), (COUNT,), 2))


@pytest.mark.parametrize("network_batch", [1, 3, 8])
def test_chunks_of_a_fixed_size_hide_a_rounding_that_depends_on_it(network_batch: int) -> None:
    calls = [partial(loop, value=float(index)) for index in range(8)]
    prior = PointwisePrior(rounding=0.01)
    whole = solve_batch(calls, prior, network_batch=network_batch)
    assert set(prior.rows) == {network_batch}
    for size in (1, 2, 3, 5):
        parts: list[Any] = []
        for start in range(0, 8, size):
            parts += solve_batch(calls[start : start + size], prior, network_batch=network_batch)
        assert same(whole, parts)


def test_calls_of_all_slices_become_one_evaluation() -> None:
    prior = PointwisePrior()
    solve_batch([partial(loop, value=float(index)) for index in range(4)], prior, network_batch=4)
    assert prior.rows == [4] * 12
    assert prior.threads == {threading.get_ident()}


def test_calls_that_do_not_fit_together_are_evaluated_apart() -> None:
    def other(prior: Prior) -> Tensor:
        return prior.decode(torch.ones(3, 1, 2, 2))

    prior = PointwisePrior()
    results = solve_batch([other, other, lambda p: p.decode(torch.ones(1, 1, 5, 5))], prior, network_batch=6)
    assert [tuple(result.shape) for result in results if isinstance(result, Tensor)] == [
        (3, 1, 2, 2),
        (3, 1, 2, 2),
        (1, 1, 5, 5),
    ]
    assert prior.rows == [6, 6]


def test_slices_with_gradients_keep_a_graph_of_their_own() -> None:
    def slope(prior: Prior, value: float) -> Tensor:
        latent = torch.full((1, 1, 2, 2), value, requires_grad=True)
        clean = prior.predict(latent, 5, prior.embed("")).clean
        (gradient,) = torch.autograd.grad((prior.decode(clean) ** 2).sum(), latent)
        return gradient

    prior = PointwisePrior()
    results = solve_batch([partial(slope, value=float(value)) for value in range(3)], prior, network_batch=8)
    for value, result in enumerate(results):
        torch.testing.assert_close(result, torch.full((1, 1, 2, 2), 2 * 4 * 0.81 * value))
    assert set(prior.rows) == {1}


def test_a_slice_that_fails_or_stops_early_leaves_the_others_alone() -> None:
    def failing(progress: Progress) -> None:
        if progress.stage == "treg" and progress.step == 3:
            raise NumericsError("expected a finite image, got NaN")

    def stopping(progress: Progress) -> bool:
        return progress.stage == "treg" and progress.step == 2

    first, second, third, fourth, fifth = _slices()
    calls: list[Callable[[Any], Reconstruction]] = [
        partial(_solve, first, steps=5),
        partial(_solve, second, steps=5, callback=failing),
        partial(_solve, third, steps=5, callback=stopping),
        partial(_solve, fourth, solver="dds", steps=7),
        partial(_solve, fifth, solver="ldps", steps=3),
    ]
    prior = PointwisePrior(rounding=1e-3)
    together = solve_batch(calls, prior, network_batch=4)
    apart = [solve_batch([call], prior, network_batch=4)[0] for call in calls]
    assert isinstance(together[1], NumericsError)
    assert isinstance(apart[1], NumericsError)
    for index in (0, 2, 3, 4):
        assert torch.equal(_image(together[index]), _image(apart[index]))
    assert isinstance(together[2], Reconstruction)
    assert any("stopped by the callback" in message for message in together[2].warnings)


def test_an_input_that_a_network_refuses_fails_its_own_slice_only() -> None:
    calls = [partial(loop, value=value) for value in (1.0, 666.0, 2.0)]
    good, bad, other = solve_batch(calls, PointwisePrior(), network_batch=4)
    assert isinstance(bad, ValueError)
    assert same([good, other], [loop(PointwisePrior(), value) for value in (1.0, 2.0)])


def test_without_a_prior_the_calls_run_one_after_another() -> None:
    def refuse(prior: object) -> int:
        raise ConfigError("no")

    one, two = solve_batch([lambda prior: 1 if prior is None else 0, refuse], None, network_batch=4)
    assert one == 1
    assert isinstance(two, ConfigError)
    assert solve_batch([], PointwisePrior(), network_batch=4) == []


@pytest.mark.parametrize("with_gradients", [False, True])
def test_ctrl_c_stops_all_slices(with_gradients: bool) -> None:
    before = set(threading.enumerate())

    def endless(prior: Prior) -> None:
        latent = torch.zeros(1, 1, 2, 2, requires_grad=with_gradients)
        while True:
            prior.decode(latent)
            time.sleep(1e-3)

    def interrupted(prior: Prior) -> None:
        prior.embed("")
        os.kill(os.getpid(), signal.SIGINT)
        endless(prior)

    start = time.monotonic()
    # A slice with gradients never waits for the others, so it comes first.
    with pytest.raises(KeyboardInterrupt):
        solve_batch([interrupted, endless, endless], PointwisePrior(), network_batch=2)
    for thread in set(threading.enumerate()) - before:
        thread.join(2.0)
    assert set(threading.enumerate()) <= before
    assert time.monotonic() - start < 5


def test_an_interrupt_inside_a_callback_ends_the_run() -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    calls = [partial(_solve, _slices()[0]), partial(_solve, _slices()[1], callback=interrupt)]
    with pytest.raises(KeyboardInterrupt):
        solve_batch(calls, PointwisePrior(), network_batch=2)


def test_modes_of_torch_reach_the_slices() -> None:
    def modes(prior: Prior) -> tuple[bool, bool, torch.dtype]:
        prior.embed("")
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), product.dtype

    def seen() -> Any:
        return solve_batch([modes], PointwisePrior(), network_batch=1)[0]

    assert seen() == (True, False, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert seen() == (False, False, torch.bfloat16)
    with torch.inference_mode():
        assert seen() == (False, True, torch.float32)
    assert torch.is_grad_enabled()


def test_a_slice_sees_the_prior_behind(tiny: LatentPrior) -> None:
    def look(prior: Any) -> None:
        assert isinstance(prior, BatchedPrior)
        assert isinstance(prior, Prior)
        assert prior.to("cpu") is prior
        assert prior.source == tiny.source
        assert prior.word_map is tiny.word_map
        assert torch.equal(prior.embed("axial"), tiny.embed("axial"))
        with torch.no_grad():
            latent = torch.ones(1, 6, 4, 4)
            window = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
            told = prior.predict(latent, 5, prior.embed(""), window=window)
            assert torch.equal(told.clean, tiny.predict(latent, 5, tiny.embed(""), window=window).clean)
        with pytest.raises(AttributeError):
            _ = prior.no_such_part

    assert solve_batch([look], tiny, network_batch=2) == [None]


def test_settings_of_a_slice_are_those_of_the_call(tiny: LatentPrior) -> None:
    """The record of a slice does not tell that others were solved beside it."""
    alone = _solve(_slices()[0], tiny)
    beside = solve_batch([partial(_solve, data) for data in _slices()[:2]], tiny, network_batch=4)[0]
    assert isinstance(beside, Reconstruction)
    for field in ("nfe", "seed", "solver", "text", "settings", "warnings"):
        assert getattr(alone, field) == getattr(beside, field), field
    assert beside.measurement is _slices()[0]


def test_offloaded_networks_give_the_same_bits_and_rest_in_host_memory(tiny: LatentPrior) -> None:
    prior = OffloadedPrior(tiny, "cpu")
    assert isinstance(prior, Prior)
    plain, moved = (_solve(_slices()[0], given).image for given in (tiny, prior))
    assert torch.equal(plain, moved)
    assert prior.text_warnings("zebra") == tiny.text_warnings("zebra")
    assert prior.source == tiny.source

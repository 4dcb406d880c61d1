"""Slices solved side by side: same bits whatever the batch, independent failures, and what is given up for memory."""

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

from treg_med.data.records import Geometry, Measurement, Reconstruction
from treg_med.errors import ConfigError, NumericsError, ResourceError
from treg_med.operators import CartesianMRI, complex_gaussian_noise, random_mask
from treg_med.priors import LatentPrior
from treg_med.priors.base import Prediction, Prior
from treg_med.reconstruction import reconstruct
from treg_med.runs.batched_prior import BatchedPrior, FixedChunks, OffloadedPrior, is_out_of_memory
from treg_med.runs.batching import AdaptiveBatch, solve_batch
from treg_med.solvers import Progress, latent_solver, treg
from treg_med.solvers.total_variation import TotalVariation

SIDE = 16
COUNT = 5
NOISE = 0.02


class PointwisePrior:
    """A prior of pointwise arithmetic: the same bits in any batch, unless `rounding` adds the rows of an evaluation."""

    image_multiple = 1

    def __init__(self, rounding: float = 0.0, most_rows: int = 10**9) -> None:
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 1000)
        self.rounding, self.most_rows = rounding, most_rows
        self.rows: list[int] = []
        self.threads: set[int] = set()

    def _evaluated(self, value: Tensor) -> Tensor:
        self.rows.append(len(value))
        self.threads.add(threading.get_ident())
        if len(value) > self.most_rows:
            raise torch.OutOfMemoryError(f"tried to allocate {len(value)} rows")
        return value + self.rounding * len(value)

    def encode(self, image: Tensor) -> Tensor:
        return self._evaluated(0.5 * image)

    def decode(self, latent: Tensor) -> Tensor:
        return self._evaluated(2 * latent)

    def embed(self, text: str | Sequence[str]) -> Tensor:
        texts = [text] if isinstance(text, str) else list(text)
        return torch.tensor([[[float(len(entry))]] for entry in texts])

    def text_warnings(self, text: str) -> tuple[str, ...]:
        return ()

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        if bool((latent == 666).any()):
            raise ValueError("a row that no network takes")
        steps = torch.as_tensor(timestep).expand(len(latent))
        alpha = self.alphas_cumprod[steps].reshape(-1, 1, 1, 1)
        clean = self._evaluated(0.9 * latent + 1e-3 * condition[..., None])
        return Prediction((latent - alpha.sqrt() * clean) / (1 - alpha).sqrt(), clean)


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
    """Start from a few iterations of total variation: what is tested comes after it."""
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


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _steps(prior: Prior, value: float, steps: int = 4) -> Tensor:
    """A loop over the network, one latent that depends on `value`."""
    latent, condition = torch.full((1, 1, 4, 4), value), prior.embed("words")
    for step in range(steps):
        latent = prior.encode(prior.decode(prior.predict(latent, 10 * step, condition).clean))
    return latent


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
        assert _same(alone, _in_batches(solve, tiny, sizes, 3)), f"batches of {sizes}"
    plain = _solve(_slices()[0], tiny, solver, **settings).image
    torch.testing.assert_close(alone[0], plain, rtol=1e-3, atol=1e-4)
    (ungathered,) = solve_batch([partial(solve, _slices()[0])], tiny)
    assert torch.equal(plain, _image(ungathered))


def test_gathering_changes_nothing_but_the_rounding_of_the_networks() -> None:
    plain = [_solve(data, PointwisePrior()).image for data in _slices()]
    assert _same(plain, _in_batches(_solve, PointwisePrior(), (COUNT,), 2))


@pytest.mark.parametrize("network_batch", [1, 3, 8])
def test_chunks_of_a_fixed_size_hide_a_rounding_that_depends_on_it(network_batch: int) -> None:
    calls = [partial(_steps, value=float(index)) for index in range(8)]
    prior = PointwisePrior(rounding=0.01)
    whole = solve_batch(calls, prior, network_batch=network_batch)
    assert set(prior.rows) == {network_batch}
    for size in (1, 2, 3, 5):
        parts: list[Any] = []
        for start in range(0, 8, size):
            parts += solve_batch(calls[start : start + size], prior, network_batch=network_batch)
        assert _same(whole, parts)  # type: ignore[arg-type]


def test_calls_of_all_slices_become_one_evaluation() -> None:
    prior = PointwisePrior()
    solve_batch([partial(_steps, value=float(index)) for index in range(4)], prior, network_batch=4)
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
    calls = [partial(_steps, value=value) for value in (1.0, 666.0, 2.0)]
    good, bad, other = solve_batch(calls, PointwisePrior(), network_batch=4)
    assert isinstance(bad, ValueError)
    assert torch.equal(good, _steps(PointwisePrior(), 1.0))  # type: ignore[arg-type]
    assert torch.equal(other, _steps(PointwisePrior(), 2.0))  # type: ignore[arg-type]


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


@pytest.mark.parametrize("size", [0, -1, True, 1.5])
def test_sizes_are_checked(size: Any) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        FixedChunks(size)
    with pytest.raises(ConfigError, match="at least 1"):
        AdaptiveBatch(size, device="cuda")
    with pytest.raises(ConfigError, match="at least 1"):
        AdaptiveBatch(4, network_batch=size)


def test_sizes_follow_the_device() -> None:
    on_gpu, on_cpu = AdaptiveBatch(device="cuda:1"), AdaptiveBatch(4)
    assert (on_gpu.size, on_gpu.network_batch) == (8, 8)
    assert (on_cpu.size, on_cpu.network_batch) == (1, None)
    assert AdaptiveBatch(16, device="cuda").size == 16


def test_network_out_of_memory_halves_the_batch_and_repeats_the_slices() -> None:
    prior = PointwisePrior(most_rows=2)
    batch = AdaptiveBatch(8, network_batch=8)
    results = batch.run([float(value) for value in range(11)], lambda value, p: _steps(p, value), prior)
    assert [event["event"] for event in batch.events] == [
        "batch 8 -> 4, network batch 8 -> 4: out of memory",
        "batch 4 -> 2, network batch 4 -> 2: out of memory",
    ]
    assert {event["where"] for event in batch.events} == {"network"}
    assert (batch.size, batch.network_batch, batch.offloaded) == (2, 2, False)
    assert _same(results, [_steps(PointwisePrior(), float(value)) for value in range(11)])  # type: ignore[arg-type]
    prior.rows.clear()
    batch.run([1.0, 2.0, 3.0], lambda value, p: _steps(p, value), prior)
    assert max(prior.rows) == 2
    assert len(batch.events) == 2


def test_a_network_batch_that_shrinks_gives_the_bits_of_the_smaller_one() -> None:
    batch = AdaptiveBatch(8, network_batch=8)
    shrunk = batch.run(range(8), lambda value, p: _steps(p, float(value)), PointwisePrior(0.01, most_rows=4))
    calls = [partial(_steps, value=float(value)) for value in range(8)]
    assert _same(shrunk, solve_batch(calls, PointwisePrior(0.01), network_batch=4))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_slice_out_of_memory_halves_the_batch_alone(error: Exception) -> None:
    """More than three slices at once do not fit; the network's rows and its rounding stay, and none is solved twice."""
    prior, inside, finished = PointwisePrior(rounding=0.01), [0], [0] * 8

    def solve(value: int, seen: Prior) -> Tensor:
        inside[0] += 1
        try:
            if inside[0] > 3:
                raise error
            result = _steps(seen, float(value))
        finally:
            inside[0] -= 1
        finished[value] += 1
        return result

    batch = AdaptiveBatch(8, network_batch=8)
    results = batch.run(range(8), solve, prior)
    assert [event["event"] for event in batch.events] == [
        "batch 8 -> 4: out of memory",
        "batch 4 -> 2: out of memory",
    ]
    assert {event["where"] for event in batch.events} == {"slice"}
    assert finished == [1] * 8
    calls = [partial(_steps, value=float(value)) for value in range(8)]
    assert _same(results, solve_batch(calls, PointwisePrior(0.01), network_batch=8))  # type: ignore[arg-type]


def test_other_errors_stay_in_their_place() -> None:
    def solve(value: int, prior: Prior) -> int:
        if value == 1:
            raise ConfigError("no")
        return value

    zero, one, two = AdaptiveBatch(2, network_batch=2).run(range(3), solve, PointwisePrior())
    assert (zero, two) == (0, 2)
    assert isinstance(one, ConfigError)


def test_an_allocator_that_says_so_in_words_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("expected a tensor of shape (2, 2)"))
    assert not is_out_of_memory(ResourceError("expected a folder"))


class _Component(torch.nn.Module):
    """Remembers where it was moved; the moves to the device are not carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[str] = []

    def to(self, device: Any) -> _Component:  # type: ignore[override]
        self.moves.append(str(device))
        return self


class _PartedPrior(PointwisePrior):
    """A prior of components that does not fit on the device unless the others are off it."""

    def __init__(self) -> None:
        super().__init__()
        self.vae, self.unet, self.text_encoder = _Component(), _Component(), _Component()

    def to(self, device: object) -> _PartedPrior:
        raise AssertionError("moved as a whole")

    def decode(self, latent: Tensor) -> Tensor:
        if self.unet.moves[-1:] != ["cpu"]:
            raise torch.OutOfMemoryError("the other networks are in the way")
        assert self.vae.moves[-1] == "cuda:0"
        return super().decode(latent)


def test_one_slice_that_does_not_fit_takes_the_networks_off_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args, **kwargs: tensor)
    prior, batch = _PartedPrior(), AdaptiveBatch(2, network_batch=2, device="cuda:0")

    def solve(value: float, seen: Any) -> Tensor:
        latent = torch.full((1, 1, 2, 2), value)
        if batch.offloaded:
            assert seen.to("cuda:0") is seen
        with torch.no_grad():
            return seen.decode(seen.predict(latent, 3, torch.zeros(1, 1, 1)).clean)

    results = batch.run([1.0, 2.0, 3.0], solve, prior)
    assert [event["event"] for event in batch.events] == [
        "batch 2 -> 1, network batch 2 -> 1: out of memory",
        "offload: out of memory",
    ]
    assert batch.events[-1]["offloaded"]
    assert [float(result.mean()) for result in results] == pytest.approx([1.8, 3.6, 5.4])  # type: ignore[union-attr]
    assert prior.unet.moves[-2:] == ["cuda:0", "cpu"]
    assert prior.text_encoder.moves == ["cpu"] * len(prior.text_encoder.moves)


def test_offloaded_networks_give_the_same_bits_and_rest_in_host_memory(tiny: LatentPrior) -> None:
    prior = OffloadedPrior(tiny, "cpu")
    assert isinstance(prior, Prior)
    plain, moved = (_solve(_slices()[0], given).image for given in (tiny, prior))
    assert torch.equal(plain, moved)
    assert prior.text_warnings("zebra") == tiny.text_warnings("zebra")
    assert prior.source == tiny.source


def test_a_network_in_a_graph_stays_on_the_device_until_its_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = _PartedPrior()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda tensor, *args, **kwargs: tensor)
        offloaded = OffloadedPrior(prior, "cuda:0")
    latent = torch.ones(1, 1, 2, 2, requires_grad=True)
    offloaded.predict(latent, 3, torch.zeros(1, 1, 1))
    assert prior.unet.moves[-1] == "cuda:0"
    with torch.no_grad():
        offloaded.predict(latent.detach(), 3, torch.zeros(1, 1, 1))
    assert prior.unet.moves[-1] == "cpu"


def test_texts_are_encoded_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Conditions:
        def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
            asked.append((list(texts), str(device), prior.text_encoder.moves[-1]))
            return torch.zeros(len(texts), 1, 1)

    prior, asked = _PartedPrior(), list[tuple[list[str], str, str]]()
    prior.conditioning = Conditions()  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args, **kwargs: tensor)
    offloaded = OffloadedPrior(prior, "cuda:0")
    with torch.no_grad():
        assert offloaded.embed("axial").shape == (1, 1, 1)
    assert asked == [(["axial"], "cuda:0", "cuda:0")]
    assert prior.text_encoder.moves[-1] == "cpu"


def test_what_was_tried_is_said_where_nothing_helps() -> None:
    def solve(value: int, prior: Prior) -> Tensor:
        return prior.decode(torch.zeros(1, 1, 2, 2))

    batch = AdaptiveBatch(4, network_batch=4)
    with pytest.raises(ResourceError, match=r"on cpu, got out of memory \(decode of 1 rows.*batch 4 -> 2.*2 -> 1"):
        batch.run(range(3), solve, PointwisePrior(most_rows=0))
    assert [event["batch"] for event in batch.events] == [2, 1]


def test_settings_of_a_slice_are_those_of_the_call(tiny: LatentPrior) -> None:
    """The record of a slice does not tell that others were solved beside it."""
    alone = _solve(_slices()[0], tiny)
    beside = solve_batch([partial(_solve, data) for data in _slices()[:2]], tiny, network_batch=4)[0]
    assert isinstance(beside, Reconstruction)
    for field in ("nfe", "seed", "solver", "text", "settings", "warnings"):
        assert getattr(alone, field) == getattr(beside, field), field
    assert beside.measurement is _slices()[0]

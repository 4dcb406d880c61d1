"""What is given up when memory runs out: the batch, the rows of the networks, and their place on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs.pointwise_prior import PointwisePrior, loop, same
from treg_med.errors import ConfigError, ResourceError
from treg_med.priors.base import Prior
from treg_med.runs.batched_prior import FixedChunks, OffloadedPrior, is_out_of_memory
from treg_med.runs.batching import AdaptiveBatch, solve_batch


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
    results = batch.run([float(value) for value in range(11)], lambda value, p: loop(p, value), prior)
    assert [event["event"] for event in batch.events] == [
        "batch 8 -> 4, network batch 8 -> 4: out of memory",
        "batch 4 -> 2, network batch 4 -> 2: out of memory",
    ]
    assert {event["where"] for event in batch.events} == {"network"}
    assert (batch.size, batch.network_batch, batch.offloaded) == (2, 2, False)
    assert same(results, [loop(PointwisePrior(), float(value)) for value in range(11)])
    prior.rows.clear()
    batch.run([1.0, 2.0, 3.0], lambda value, p: loop(p, value), prior)
    assert max(prior.rows) == 2
    assert len(batch.events) == 2


def test_a_network_batch_that_shrinks_gives_the_bits_of_the_smaller_one() -> None:
    batch = AdaptiveBatch(8, network_batch=8)
    shrunk = batch.run(range(8), lambda value, p: loop(p, float(value)), PointwisePrior(0.01, most_rows=4))
    calls = [partial(loop, value=float(value)) for value in range(8)]
    assert same(shrunk, solve_batch(calls, PointwisePrior(0.01), network_batch=4))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_slice_out_of_memory_halves_the_batch_alone(error: Exception) -> None:
    """More than three slices at once do not fit; the network's rows and its rounding stay, and none is solved twice."""
    prior, inside, finished = PointwisePrior(rounding=0.01), [0], [0] * 8

    def solve(value: int, seen: Prior) -> Tensor:
        inside[0] += 1
        try:
            if inside[0] > 3:
                raise error
            result = loop(seen, float(value))
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
    calls = [partial(loop, value=float(value)) for value in range(8)]
    assert same(results, solve_batch(calls, PointwisePrior(0.01), network_batch=8))


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

"""What solving slices side by side costs beyond networks and physics, with a network that takes a fixed time per call.

    python benchmarks/runner_overhead.py --output benchmarks/runner_overhead.md

The prior stands for one on a GPU that is not full: its denoiser waits a fixed time per evaluation, whatever the rows,
and its autoencoder costs next to nothing. Everything else is real: methods, operators, and the gathering of network
calls. The physics is what the same slices take one after another with a denoiser that does not wait; it is not batched.

Physics and gathering are process CPU times on one thread, the least of the repetitions: the difference of wall times
would be noise where other programs run. The cost of gathering is that of a bare loop of network calls that take no
time, per call and slice, times the calls of the method.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from treg_med import Measurement, reconstruct
from treg_med.data import Geometry
from treg_med.operators import CartesianMRI, birdcage_maps, complex_gaussian_noise, random_mask
from treg_med.priors.base import Prediction
from treg_med.runs.batching import solve_batch

SIDE = 64
NETWORK_BATCH = 8
NETWORK_SECONDS = 0.02
BATCHES = (1, 2, 4, 8)
FACTOR = 4
BARE_CALLS = 500
WANTED = 0.10


class WaitingPrior:
    """Block means as latents, and a denoiser that waits."""

    image_multiple = FACTOR

    def __init__(self, seconds: float) -> None:
        self.alphas_cumprod = torch.cos(torch.linspace(0.02, 1.55, 1000)).square()
        self.seconds, self.waited, self.calls = seconds, 0.0, 0

    def encode(self, image: Tensor) -> Tensor:
        self.calls += 1
        return functional.avg_pool2d(image, FACTOR)

    def decode(self, latent: Tensor) -> Tensor:
        self.calls += 1
        return functional.interpolate(latent, scale_factor=FACTOR)

    def embed(self, text: str | Sequence[str]) -> Tensor:
        return torch.zeros(1 if isinstance(text, str) else len(text), 1, 1)

    def text_warnings(self, text: str) -> tuple[str, ...]:
        return ()

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        self.calls += 1
        start = time.perf_counter()
        alpha = self.alphas_cumprod[torch.as_tensor(timestep).expand(len(latent))].reshape(-1, 1, 1, 1)
        clean = latent / alpha.sqrt()
        if self.seconds:
            time.sleep(self.seconds)
        self.waited += time.perf_counter() - start
        return Prediction((latent - alpha.sqrt() * clean) / (1 - alpha).sqrt(), clean)


@dataclass(frozen=True)
class Times:
    """Seconds of a batch, and network calls of one slice."""

    wall: float
    cpu: float
    network: float
    calls: int


@dataclass(frozen=True)
class Row:
    """One method at one batch size."""

    method: str
    together: Times
    one_by_one: Times
    physics: float
    gathering: float
    batch: int

    @property
    def share(self) -> float:
        return self.gathering / self.together.network


def slices(count: int) -> list[Measurement]:
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(-1, 1, SIDE)
    disc = (grid[:, None].square() + grid.square() < 0.7).float()
    made = []
    for index in range(count):
        mask = random_mask((SIDE, SIDE), 3.0, 0.1, generator=generator).mask
        operator = CartesianMRI(mask, birdcage_maps(4, (SIDE, SIDE)))
        clean = operator((disc * (0.5 + 0.5 * torch.rand(SIDE, SIDE, generator=generator))).to(torch.complex64))
        y = clean + complex_gaussian_noise(tuple(clean.shape), 0.02, generator) * operator.mask
        geometry = Geometry(shape=(SIDE, SIDE, count), slice_index=index)
        made.append(Measurement(y=y, operator=operator, noise_std=0.02, geometry=geometry))
    return made


def timed(
    calls: Sequence[Callable[[Any], Any]], seconds: float, network_batch: int | None, repetitions: int
) -> Times:
    """Least wall and CPU time of the repetitions."""
    taken = []
    for _ in range(repetitions):
        prior = WaitingPrior(seconds)
        wall, cpu = time.perf_counter(), time.process_time()
        results = solve_batch(calls, prior, network_batch=network_batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        for result in results:
            if isinstance(result, Exception):
                raise result
        taken.append(Times(wall, cpu, prior.waited, prior.calls // len(calls)))
    least = min(taken, key=lambda times: times.wall)
    return replace(least, cpu=min(times.cpu for times in taken))


def bare_seconds(batch: int, repetitions: int) -> float:
    """CPU seconds that gathering adds to one network call of one slice, with nothing around it."""

    def loop(prior: Any) -> None:
        latent, condition = torch.zeros(1, 1, SIDE // FACTOR, SIDE // FACTOR), torch.zeros(1, 1, 1)
        for _ in range(BARE_CALLS):
            prior.predict(latent, 500, condition)

    together, alone = (timed([loop] * batch, 0.0, size, repetitions).cpu for size in (NETWORK_BATCH, None))
    # Evaluated together the calls themselves are done once for all; what is left of them is counted as gathering.
    return (together - alone / batch) / (batch * BARE_CALLS)


def measure(method: str, repetitions: int, bare: dict[int, float]) -> list[Row]:
    def solve(data: Measurement, prior: Any) -> Any:
        return reconstruct(data, "axial", method, prior, device="cpu")

    rows = []
    for batch in BATCHES:
        calls = [partial(solve, data) for data in slices(batch)]
        physics = timed(calls, 0.0, None, repetitions)
        one_by_one = timed(calls, NETWORK_SECONDS, None, 1)
        together = timed(calls, NETWORK_SECONDS, NETWORK_BATCH, repetitions)
        gathering = bare[batch] * batch * physics.calls
        rows.append(Row(method, together, one_by_one, physics.cpu, gathering, batch))
    return rows


def report(rows: list[Row], bare: dict[int, float]) -> str:
    lines = [
        "# Slices side by side: the cost of gathering network calls",
        "",
        f"`python benchmarks/runner_overhead.py`: a denoiser of {1e3 * NETWORK_SECONDS:.0f} ms per evaluation of "
        f"{NETWORK_BATCH} rows, {SIDE} x {SIDE} images, 4 coils, default settings, {torch.get_num_threads()} thread, "
        f"torch {torch.__version__}, {platform.machine()}. Seconds of a whole batch; physics and gathering are process "
        "CPU time. Physics is not batched: on a GPU it runs there, here it is this CPU's. Other programs may have run "
        "beside, which the wall times show.",
        "",
        "| method | batch | network | gathering | gathering / network | physics | wall | wall, one by one |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.method} | {r.batch} | {r.together.network:.2f} | {r.gathering:.3f} | {r.share:.1%} | {r.physics:.2f} "
        f"| {r.together.wall:.2f} | {r.one_by_one.wall:.2f} |"
        for r in rows
    ]
    worst = max(r.share for r in rows if r.batch == BATCHES[-1])
    lines += [
        "",
        f"Wanted at batch {BATCHES[-1]}: at most {WANTED:.0%} of the network time beyond the physics. "
        f"Measured {worst:.1%}: {'met' if worst <= WANTED else 'missed'}.",
        "",
        "Gathering costs, in CPU microseconds per network call and slice: "
        + ", ".join(f"{1e6 * value:.0f} at batch {batch}" for batch, value in bare.items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["treg", "dds"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bare = {batch: bare_seconds(batch, 3 * arguments.repetitions) for batch in BATCHES}
    rows = [row for method in arguments.methods for row in measure(method, arguments.repetitions, bare)]
    text = report(rows, bare)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()

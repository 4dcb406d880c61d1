"""Cartesian MRI operators and CG-SENSE beside mrpro, deepinv and sigpy, as process CPU time on one thread.

    python benchmarks/cartesian.py --output benchmarks/cartesian.md

Every implementation gets the same maps, mask and image in its own layout, prepared outside the timed call.
Calls of all implementations are interleaved in one process; the median over the repetitions is reported.
Peers that cannot be imported are left out. mrpro ships no sampling mask for gridded k-space; it gets the
shortest one its operator class allows. sigpy has no batch axis in its `Sense` operator and loops over the
batch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treg_med.operators import (
    CartesianMRI,
    birdcage_maps,
    centered_fft2,
    centered_ifft2,
    complex_gaussian_noise,
    conjugate_gradient,
    gaussian_mask_2d,
    random_mask,
)

Call = Callable[[], Any]
TRANSFORMS = "FFTs alone"
COLUMNS = ("treg_med", "mrpro", "deepinv", "sigpy", TRANSFORMS)
BARS = {
    ("A", 1): 0.65,
    ("A^H", 1): 0.65,
    ("A^H A", 1): 0.35,
    ("A", 8): 0.40,
    ("A^H", 8): 0.40,
    ("A^H A", 8): 0.30,
}
_keep_alive: list[Any] = []


@dataclass
class Implementation:
    """The calls of one library on one problem; each result is brought to our layout by ``common``."""

    name: str
    forward: Call
    adjoint: Call
    gram: Call
    cg_sense: Call
    common: Callable[[Any], Tensor] = field(default=lambda result: result)


@dataclass(frozen=True)
class Problem:
    """Maps ``(coils, H, W)``, mask ``(H, W)``, image ``(batch, H, W)``, k-space ``(batch, coils, H, W)``."""

    maps: Tensor
    mask: Tensor
    image: Tensor
    kspace: Tensor


Build = Callable[[Problem], Implementation]


@dataclass(frozen=True)
class Times:
    """CPU milliseconds of one call."""

    median: float
    best: float


def make_problem(batch: int, coils: int, mask_kind: str, size: int = 320) -> Problem:
    generator = torch.Generator().manual_seed(0)
    if mask_kind == "1-D":
        mask = random_mask((size, size), 1 / 0.3, 0.08, generator=generator).mask
    else:
        mask = gaussian_mask_2d((size, size), 1 / 0.3, 24, generator=generator).mask
    maps = birdcage_maps(coils, (size, size))
    grid = torch.linspace(-1, 1, size)
    radius = (grid[:, None] ** 2 + (1.2 * grid[None, :]) ** 2).sqrt()
    texture = complex_gaussian_noise((batch, size, size), 0.2, generator)
    phase = torch.polar(torch.ones(size, size), 2 * grid[:, None] * grid[None, :])
    image = (radius < 0.9) * phase * (1 + texture + 0.5 * (radius < 0.4))
    kspace = CartesianMRI(mask, maps)(image)
    kspace = kspace + complex_gaussian_noise(tuple(kspace.shape), 0.01, generator) * mask
    return Problem(maps, mask, image, kspace)


def ours(problem: Problem) -> Implementation:
    operator = CartesianMRI(problem.mask, problem.maps)
    gram = operator.gram
    return Implementation(
        "treg_med",
        lambda: operator(problem.image),
        lambda: operator.adjoint(problem.kspace),
        lambda: gram(problem.image),
        lambda: conjugate_gradient(gram, operator.adjoint(problem.kspace), max_iter=10, rtol=0).x,
    )


def mrpro_peer(problem: Problem) -> Implementation:
    from mrpro.algorithms.optimizers import cg
    from mrpro.operators import FastFourierOp, LinearOperator, SensitivityOp

    class Mask(LinearOperator):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.mask = mask

        def __call__(self, x: Tensor) -> tuple[Tensor]:
            return super().__call__(x)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x * self.mask,)

        def adjoint(self, x: Tensor) -> tuple[Tensor]:
            return (x * self.mask,)

    operator = Mask(problem.mask.float()) @ FastFourierOp(dim=(-2, -1)) @ SensitivityOp(problem.maps[:, None])
    image, kspace = problem.image[:, None, None], problem.kspace[:, :, None]
    gram = operator.gram
    return Implementation(
        "mrpro",
        lambda: operator(image)[0],
        lambda: operator.adjoint(kspace)[0],
        lambda: gram(image)[0],
        lambda: cg(gram, operator.adjoint(kspace)[0], max_iterations=10, tolerance=0)[0],
        lambda result: result.squeeze(2) if result.shape[1] > 1 else result[:, 0, 0],
    )


def deepinv_peer(problem: Problem) -> Implementation:
    from deepinv.optim.linear import conjugate_gradient as cg
    from deepinv.physics import MultiCoilMRI

    physics = MultiCoilMRI(mask=problem.mask.float(), coil_maps=problem.maps)
    image = torch.view_as_real(problem.image).movedim(-1, 1).contiguous()
    kspace = torch.view_as_real(problem.kspace).movedim(-1, 1).contiguous()
    return Implementation(
        "deepinv",
        lambda: physics.A(image),
        lambda: physics.A_adjoint(kspace),
        lambda: physics.A_adjoint_A(image),
        lambda: cg(physics.A_adjoint_A, physics.A_adjoint(kspace), max_iter=10, tol=0),
        lambda result: torch.view_as_complex(result.movedim(1, -1).contiguous()),
    )


def sigpy_peer(problem: Problem) -> Implementation:
    import numpy as np
    from sigpy.mri.app import SenseRecon
    from sigpy.mri.linop import Sense

    maps, weights = problem.maps.numpy(), problem.mask.numpy().astype(np.float32)
    images, kspaces = problem.image.numpy(), problem.kspace.numpy()
    operator = Sense(maps, weights=weights)
    adjoint = operator.H
    normal = operator.N

    def reconstruct(y: np.ndarray) -> np.ndarray:
        return SenseRecon(y, maps, weights=weights, lamda=0, max_iter=10, show_pbar=False).run()

    return Implementation(
        "sigpy",
        lambda: np.stack([operator * x for x in images]),
        lambda: np.stack([adjoint * y for y in kspaces]),
        lambda: np.stack([normal * x for x in images]),
        lambda: np.stack([reconstruct(y) for y in kspaces]),
        torch.from_numpy,
    )


def available_peers() -> dict[str, Build]:
    """Import what is installed."""
    # A CUDA torchvision beside a CPU torch fails to import for want of two schemas, and takes peers with it.
    torchvision = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        torchvision.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _keep_alive.append(torchvision)
    peers: dict[str, Build] = {}
    for name, build in (("mrpro", mrpro_peer), ("deepinv", deepinv_peer), ("sigpy", sigpy_peer)):
        try:
            __import__(name)
        except Exception as error:  # any failure only means that this peer is left out
            print(f"{name} left out: {error}", file=sys.stderr)
        else:
            peers[name] = build
    return peers


def interleaved_cpu_times(calls: dict[str, Call], repetitions: int) -> dict[str, Times]:
    """Process CPU time of each call in milliseconds, one call of each per round."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.process_time_ns()
            call()
            samples[name].append((time.process_time_ns() - start) / 1e6)
    return {name: Times(statistics.median(values), min(values)) for name, values in samples.items()}


def transforms_alone(problem: Problem, label: str, mask_kind: str) -> Call:
    """The Fourier transforms of our implementation and nothing else: what no bookkeeping can undercut."""
    axes = (-1,) if (label, mask_kind) == ("A^H A", "1-D") else (-2, -1)
    n = problem.image.shape[0] * problem.maps.shape[0] * (2 if label == "A^H A" else 1)
    data = problem.image[0].clone()

    def call() -> None:
        for _ in range(n):
            torch.fft.fftn(data, dim=axes)

    return call


def relative(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def reference(problem: Problem) -> dict[str, Tensor]:
    maps, image = problem.maps.to(torch.complex128), problem.image.to(torch.complex128)
    kspace = problem.kspace.to(torch.complex128)

    def forward(x: Tensor) -> Tensor:
        return centered_fft2(x[:, None] * maps) * problem.mask

    def adjoint(y: Tensor) -> Tensor:
        return (centered_ifft2(y * problem.mask) * maps.conj()).sum(1)

    return {"A": forward(image), "A^H": adjoint(kspace), "A^H A": adjoint(forward(image))}


def run(batch: int, mask_kind: str, repetitions: int, peers: dict[str, Build]) -> list[str]:
    """Rows of the operator table for one batch size and mask."""
    problem = make_problem(batch, 15, mask_kind)
    implementations = [build(problem) for build in (ours, *peers.values())]
    truth = reference(problem)
    rows = []
    for label, attribute in (("A", "forward"), ("A^H", "adjoint"), ("A^H A", "gram")):
        calls = {item.name: getattr(item, attribute) for item in implementations}
        calls[TRANSFORMS] = transforms_alone(problem, label, mask_kind)
        times = interleaved_cpu_times(calls, repetitions)
        bar = 0.25 if (label, mask_kind) == ("A^H A", "1-D") else BARS[label, batch]
        error = f"{relative(calls['treg_med'](), truth[label]):.1e}"
        rows.append(table_row(f"{label}, {mask_kind} mask, batch {batch}", times, bar, error))
    return rows


def run_cg_sense(mask_kind: str, repetitions: int, peers: dict[str, Build]) -> str:
    """Row of the table for ten CG-SENSE iterations with eight coils."""
    problem = make_problem(1, 8, mask_kind)
    implementations = [build(problem) for build in (ours, *peers.values())]
    times = interleaved_cpu_times({item.name: item.cg_sense for item in implementations}, repetitions)
    solutions = {item.name: item.common(item.cg_sense()) for item in implementations}
    own = solutions.pop("treg_med")
    errors = "; ".join(f"{name} {relative(own, solution):.1e}" for name, solution in solutions.items())
    return table_row(f"CG-SENSE 10 iterations, 8 coils, {mask_kind} mask", times, 0.40, errors)


def table_row(label: str, times: dict[str, Times], bar: float, error: str) -> str:
    peers = {name: value for name, value in times.items() if name not in ("treg_med", TRANSFORMS)}
    cells = [f"{times[name].median:.1f}" if name in times else "-" for name in COLUMNS]
    if not peers:
        return f"| {label} | {' | '.join(cells)} | - | - | {bar:.2f} | {error} |"
    ratio = times["treg_med"].median / min(value.median for value in peers.values())
    best = times["treg_med"].best / min(value.best for value in peers.values())
    verdict = "met" if ratio <= bar else "missed"
    return f"| {label} | {' | '.join(cells)} | {ratio:.2f} | {best:.2f} | {bar:.2f} {verdict} | {error} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    peers = available_peers()
    few = max(3, arguments.repetitions // 2)
    lines = [
        f"| case | {' | '.join(COLUMNS)} | ratio of medians | ratio of best | bar | error |",
        f"|---|{'--:|' * len(COLUMNS)}--:|--:|---|---|",
    ]
    with torch.no_grad():
        for batch, repetitions in ((1, arguments.repetitions), (8, few)):
            for mask_kind in ("1-D", "2-D"):
                lines += run(batch, mask_kind, repetitions, peers)
        lines += [run_cg_sense(kind, few, peers) for kind in ("1-D", "2-D")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *peers))
    header = f"""# Cartesian MRI: speed beside the peers

    python benchmarks/cartesian.py --output {arguments.output or "FILE"} --repetitions {arguments.repetitions}

320x320, 15 coils, complex64, 30 % of k-space sampled; median process CPU time (user + system) in ms on one
thread, calls interleaved in one process. `{TRANSFORMS}`: our Fourier transforms and nothing else, in the same
rounds. Ratios are ours over the fastest peer; the bar applies to the ratio of medians. Error: ours against a
float64 reference; for CG-SENSE our solution against each peer's. {versions}; {processor()}.
"""
    text = "\n".join([header, *lines]) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()

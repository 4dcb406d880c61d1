"""CT projectors beside ASTRA, ODL and scikit-image: time, accuracy, memory, matched adjoints, CGLS.

    OMP_NUM_THREADS=1 python benchmarks/ct.py --output benchmarks/ct.md

All implementations are called in turn in one process. Peers that cannot be imported are left out. Images and sinograms
go in and come out as torch tensors of our layout.
"""

from __future__ import annotations

import argparse
import importlib
import math
import multiprocessing
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treg_med.operators import ConeBeamCT, FanBeamCT, LinearOperator, ParallelBeamCT, filtered_backprojection
from treg_med.operators.ct_rays import FanRays, ParallelRays, Rays
from treg_med.operators.ramp_filter import ramp_filter

Apply = Callable[[Tensor], Tensor]
PEERS = {"astra-toolbox": "astra", "odl": "odl.applications.tomo", "scikit-image": "skimage.transform"}
FAN = {"source_origin": 500.0, "origin_detector": 300.0, "bin_size": 1.2}
# Value, half axes, centre, turn in degrees, in units of half the image: Shepp and Logan's head in Toft's contrast.
ELLIPSES = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


@dataclass(frozen=True)
class Method:
    """A projector, its adjoint and its filtered backprojection; `shift` moves its rotation axis, in mm."""

    name: str
    rays: Rays
    forward: Apply
    adjoint: Apply
    fbp: Apply | None = None
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def own(self) -> bool:
        return isinstance(self.forward, LinearOperator)


@dataclass
class Report:
    """Lines of markdown, and the goals with what was measured."""

    lines: list[str] = field(default_factory=list)
    goals: list[str] = field(default_factory=list)

    def table(self, title: str, columns: str, rows: list[str]) -> None:
        rule = "|---|" + "--:|" * (columns.count("|") - 2)
        self.lines += [f"## {title}", "", columns, rule, *rows, ""]

    def goal(self, what: str, value: float, limit: float) -> None:
        verdict = "met" if value <= limit else "missed"
        self.goals.append(f"| {what} | {value:.3g} | {limit:g} | {verdict} |")


def phantom(size: int, sub: int = 8) -> Tensor:
    """The ellipses averaged over the area of the pixels."""
    grid = (torch.arange(size * sub, dtype=torch.float64) + 0.5) / sub * 2 / size - 1
    image = torch.zeros(size * sub, size * sub)
    for value, a, b, x0, y0, degrees in ELLIPSES:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        x, y = grid - x0, (-grid - y0)[:, None]
        image += value * (((x * cos + y * sin) / a).square() + ((y * cos - x * sin) / b).square() <= 1)
    return image.reshape(size, sub, size, sub).mean((1, 3))


def exact_sinogram(rays: Rays, size: int, shift: tuple[float, float] = (0.0, 0.0), sub: int = 16) -> Tensor:
    """Line integrals of the ellipses averaged over the bins."""
    centre = (rays.axis + 0.5) * sub - 0.5
    theta, s = replace(rays, n_bins=rays.n_bins * sub, bin_size=rays.bin_size / sub, centre=centre).lines()
    s = (s + shift[0] * theta.cos() + shift[1] * theta.sin()) * 2 / size
    total = torch.zeros_like(s)
    for value, a, b, x0, y0, degrees in ELLIPSES:
        turned = theta - math.radians(degrees)
        width = (a * turned.cos()).square() + (b * turned.sin()).square()
        away = s - x0 * theta.cos() - y0 * theta.sin()
        total += value * 2 * a * b * (width - away.square()).clamp_min(0).sqrt() / width
    return (total.unflatten(-1, (-1, sub)).mean(-1) * size / 2).float()


def ours(operator: ParallelBeamCT | FanBeamCT, name: str) -> Method:
    return Method(name, operator.rays, operator, operator.adjoint, lambda y: filtered_backprojection(operator, y))


def astra_method(astra: Any, kind: str, size: int, rays: Rays) -> Method:
    fan = (rays.source_origin, rays.origin_detector) if isinstance(rays, FanRays) else ()
    beam = "fanflat" if fan else "parallel"
    geometry = astra.create_proj_geom(beam, rays.bin_size, rays.n_bins, rays.angles.numpy(), *fan)
    grid = astra.create_vol_geom(size, size)
    projector = astra.create_projector(kind, geometry, grid)
    image, sinogram = torch.zeros(size, size), torch.zeros(rays.views, rays.n_bins)
    volume = astra.data2d.link("-vol", grid, image.numpy())
    projections = astra.data2d.link("-sino", geometry, sinogram.numpy())

    def algorithm(name: str, volume_key: str) -> int:
        keys = {"ProjectorId": projector, "ProjectionDataId": projections, volume_key: volume}
        return astra.algorithm.create(astra.astra_dict(name) | keys)

    project, backproject = algorithm("FP", "VolumeDataId"), algorithm("BP", "ReconstructionDataId")

    def forward(x: Tensor) -> Tensor:
        image.copy_(x)
        astra.algorithm.run(project)
        return sinogram.clone()

    def adjoint(y: Tensor) -> Tensor:
        sinogram.copy_(y)
        astra.algorithm.run(backproject)
        return image.clone()

    def fbp(y: Tensor) -> Tensor:
        return adjoint(ramp_filter(y, rays.bin_size) * (math.pi / rays.views))

    return Method(f"astra {kind}", rays, forward, adjoint, None if fan else fbp)


def odl_method(tomo: Any, size: int, rays: Rays) -> Method:
    import odl

    step, half = math.pi / rays.views, size / 2
    space = odl.uniform_discr([-half, -half], [half, half], [size, size], dtype="float32")
    views = odl.uniform_partition(-step / 2, math.pi - step / 2, rays.views)
    bins = odl.uniform_partition(-rays.n_bins / 2, rays.n_bins / 2, rays.n_bins)
    transform = tomo.RayTransform(space, tomo.Parallel2dGeometry(views, bins), impl="astra_cpu")
    adjoint, filtered = transform.adjoint, tomo.fbp_op(transform)

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(transform(space.element(x.flip(0).mT.contiguous().numpy())).data)

    def back(apply: Callable[[Any], Any], y: Tensor) -> Tensor:
        return torch.from_numpy(apply(transform.range.element(y.numpy())).data).mT.flip(0)

    return Method("odl astra_cpu", rays, forward, lambda y: back(adjoint, y), lambda y: back(filtered, y))


def skimage_method(transform: Any, size: int, rays: Rays) -> Method:
    """Its axis runs through pixel (n // 2, n // 2), and it chooses the bins itself."""
    degrees = np.rad2deg(rays.angles.numpy())
    bins = len(transform.radon(np.zeros((size, size), np.float32), degrees[:1], circle=False))
    rays = ParallelRays(rays.angles, bins, centre=float(bins // 2))

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(transform.radon(x.numpy(), degrees, circle=False)).mT

    def back(y: Tensor, ramp: str | None) -> Tensor:
        return torch.from_numpy(transform.iradon(y.mT.contiguous().numpy(), degrees, size, ramp, circle=False))

    return Method("scikit-image", rays, forward, lambda y: back(y, None), lambda y: back(y, "ramp"), (0.5, -0.5))


def parallel_methods(size: int, views: int, bins: int, peers: dict[str, Any]) -> list[Method]:
    angles, shape = torch.arange(views, dtype=torch.float64) * math.pi / views, (size, size)
    methods = [ours(ParallelBeamCT(shape, angles, bins, replicas=n), f"fourier, replicas={n}") for n in (0, 1)]
    methods.append(ours(ParallelBeamCT(shape, angles, bins, mode="joseph"), "joseph"))
    rays = methods[0].rays
    if "astra-toolbox" in peers:
        methods += [astra_method(peers["astra-toolbox"], kind, size, rays) for kind in ("linear", "line", "strip")]
    for name, build in (("odl", odl_method), ("scikit-image", skimage_method)):
        methods += [build(peers[name], size, rays)] if name in peers else []
    return methods


def fan_methods(size: int, views: int, bins: int, peers: dict[str, Any], **beam: Any) -> list[Method]:
    angles = torch.arange(views, dtype=torch.float64) * 2 * math.pi / views
    modes = ("fourier", "joseph")
    methods = [ours(FanBeamCT((size, size), angles, bins, mode=mode, **FAN, **beam), mode) for mode in modes]
    kinds = ("line_fanflat", "strip_fanflat") if "astra-toolbox" in peers else ()
    return methods + [astra_method(peers["astra-toolbox"], kind, size, methods[0].rays) for kind in kinds]


def best_times(calls: dict[str, Callable[[], Any]], repetitions: int, warm: bool = False) -> dict[str, float]:
    """Least CPU milliseconds of each call, one call of each per round; the first does not count, unless warm."""
    best = dict.fromkeys(calls, math.inf)
    for count in range(repetitions + (not warm)):
        for name, call in calls.items():
            start = time.process_time_ns()
            call()
            if warm or count:
                best[name] = min(best[name], (time.process_time_ns() - start) / 1e6)
    return best


def relative(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def psnr(image: Tensor, truth: Tensor) -> float:
    """PSNR inside the inscribed disc; the peak is that of the truth."""
    axis = torch.arange(len(truth)) - (len(truth) - 1) / 2
    disc = axis.square() + axis[:, None].square() <= (len(truth) / 2) ** 2
    return float(10 * torch.log10(truth.max().square() / (image - truth)[disc].square().mean()))


def speed(
    report: Report, title: str, size: int, methods: list[Method], limits: dict[str, float], repetitions: int
) -> None:
    truth = phantom(size)
    exact = {item.name: exact_sinogram(item.rays, size, item.shift) for item in methods}
    calls: dict[str, dict[str, Callable[[], Any]]] = {"forward": {}, "adjoint": {}, "FBP": {}}
    for item in methods:
        calls["forward"][item.name] = lambda item=item: item.forward(truth)
        calls["adjoint"][item.name] = lambda item=item: item.adjoint(exact[item.name])
        if item.fbp:
            calls["FBP"][item.name] = lambda item=item: item.fbp(exact[item.name])
    times = {kind: best_times(group, repetitions) for kind, group in calls.items()}
    errors = {item.name: relative(item.forward(truth), exact[item.name]) for item in methods}
    quality = {item.name: psnr(item.fbp(exact[item.name]), truth) for item in methods if item.fbp}
    peer = next((item.name for item in methods if item.name.startswith("astra")), "")
    ratios = {(kind, name): t / g[peer] for kind, g in times.items() if peer in g for name, t in g.items()}
    rows = []
    for name, error in errors.items():
        cells = [f"{group[name]:.1f}" if name in group else "-" for group in times.values()]
        cells += [f"{ratios[kind, name]:.2f}" if (kind, name) in ratios else "-" for kind in times]
        decibels = f"{quality[name]:.2f}" if name in quality else "-"
        rows.append(f"| {name} | {' | '.join(cells)} | {error:.3%} | {decibels} |")
    head = " | ".join([*times, *(f"{kind} ratio" for kind in times)])
    report.table(title, "| | " + head + " | error | FBP dB |", rows)
    if peer:
        own = methods[0].name
        measured = {kind: ratios[kind, own] for kind in times if (kind, own) in ratios}
        measured["error"] = errors[own] / errors[peer]
        measured["FBP dB below"] = quality.get(peer, math.nan) - quality[own]
        for kind, limit in limits.items():
            report.goal(f"{title}: {own} to {peer}, {kind}", measured[kind], limit)


def cone_calls(size: int, views: int, panel: int) -> dict[str, Callable[[], Tensor]]:
    angles = torch.arange(views, dtype=torch.float64) * 2 * math.pi / views
    shape, distances = (size, size, size), {"source_origin": 4.0 * size, "origin_detector": 2.0 * size}
    operator = ConeBeamCT(shape, angles, (panel, panel), **distances)
    x, y = phantom(size).expand(shape).contiguous(), torch.ones(operator.range_shape)
    return {
        "forward": lambda: operator(x),
        "adjoint": lambda: operator.adjoint(y),
        "FDK": lambda: filtered_backprojection(operator, y),
    }


def highest_resident() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def cone_growth(case: tuple[int, int, int], kind: str) -> float:
    """Growth of the resident set in MiB by a call; runs in a process of its own."""
    torch.set_num_threads(1)
    cone_calls(8, 2, 12)[kind]()  # loads what is loaded once
    call = cone_calls(*case)[kind]
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
    before = highest_resident()
    call()
    return highest_resident() - before


def cone(report: Report, case: tuple[int, int, int], repetitions: int) -> None:
    times, growth = best_times(cone_calls(*case), repetitions), []
    for kind in times:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            growth.append(pool.apply(cone_growth, (case, kind)))
    rows = [
        "| ms | " + " | ".join(f"{value:.0f}" for value in times.values()) + " |",
        "| growth of the resident set, MiB | " + " | ".join(f"{value:.0f}" for value in growth) + " |",
    ]
    report.table(f"Cone {case[0]}^3, {case[1]} x {case[2]} x {case[2]}", "| | forward | adjoint | FDK |", rows)
    report.goal("cone, MiB of memory", max(growth), 2048)


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        csr = value.layout == torch.sparse_csr
        yield from (value.crow_indices(), value.col_indices(), value.values()) if csr else (value,)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in(list(vars(value).values()))


def table_bytes(operator: LinearOperator) -> int:
    """Bytes of the buffers and of the cached tables."""
    held = [(list(part.buffers(recurse=False)), list(part._cache.values())) for part in operator.modules()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(held)}.values())


def peak_growth(operator: LinearOperator, x: Tensor, y: Tensor) -> int:
    """Most bytes that torch's allocator held during forward and backward beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        operator(x).backward(y)
    events = profile.profiler.kineto_results.events()
    steps = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(np.cumsum([size for _, size in steps]))


def memory(report: Report, groups: dict[str, list[Method]]) -> None:
    rows = []
    for title, method in ((title, item) for title, group in groups.items() for item in group if item.own):
        operator: Any = method.forward
        x, y = torch.ones(operator.domain_shape, requires_grad=True), torch.ones(operator.range_shape)
        operator(x).backward(y)
        x.grad = None
        size = (x.numel() + y.numel()) * 4
        multiple = 1 + peak_growth(operator, x, y) / size
        held = table_bytes(operator) / 2**20
        rows.append(f"| {title}, {method.name} | {size / 2**20:.2f} | {multiple:.2f} | {held:.1f} |")
        report.goal(f"{title}: {method.name}, peak memory / (image + sinogram)", multiple, 3)
    report.table("Memory of forward and backward", "| | image + sinogram, MiB | peak | tables, MiB |", rows)


def mismatch(method: Method, domain: tuple[int, ...], target: tuple[int, ...]) -> tuple[float, float]:
    """Return ||B - A^T|| / ||A|| of the dense matrices after the best scalar, and that scalar."""

    def dense(apply: Apply, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([apply(one.reshape(shape)).flatten() for one in torch.eye(math.prod(shape))]).double()

    a, b = dense(method.forward, domain), dense(method.adjoint, target).mT
    scalar = float((a * b).sum() / (b * b).sum())
    return relative(scalar * b, a), scalar


def matched(report: Report, peers: dict[str, Any]) -> None:
    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3
    volume = ConeBeamCT((8, 8, 8), angles, (14, 14), source_origin=30.0, origin_detector=15.0)
    groups = {
        "parallel": parallel_methods(32, 24, 47, peers),
        "fan, flat": fan_methods(32, 24, 48, peers),
        "fan, curved": fan_methods(32, 24, 48, {}, detector="curved"),
        "cone 8^3": [Method("joseph", volume.beam.fan, volume, volume.adjoint)],
    }
    rows = []
    for beam, method in ((beam, item) for beam, group in groups.items() for item in group):
        shapes = (volume.domain_shape, volume.range_shape) if "cone" in beam else ((32, 32), (24, method.rays.n_bins))
        value, scalar = mismatch(method, *shapes)
        rows.append(f"| {beam}, {method.name} | {value:.1e} | {scalar:.4g} |")
        if method.own:
            report.goal(f"{beam}: {method.name}, mismatch of the adjoint", value, 5e-6)
    report.table("Matched adjoints", "| | mismatch | scalar |", rows)


def cgls(method: Method, y: Tensor, iterations: int = 15) -> list[Tensor]:
    """The iterates of conjugate gradients on the normal equations from zero."""
    residual, gradient = y.clone(), method.adjoint(y)
    direction, x, rho, iterates = gradient, torch.zeros_like(gradient), gradient.square().sum(), []
    for _ in range(iterations):
        projected = method.forward(direction)
        step = rho / projected.square().sum()
        x = x + step * direction
        residual -= step * projected
        gradient = method.adjoint(residual)
        previous, rho = rho, gradient.square().sum()
        direction = gradient + (rho / previous) * direction
        iterates.append(x)
    return iterates


def cgls_rows(title: str, size: int, methods: list[Method], repetitions: int) -> list[str]:
    truth, exact = phantom(size), exact_sinogram(methods[0].rays, size)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    y = exact + 0.01 * exact.square().mean().sqrt() * noise
    iterates: dict[str, list[Tensor]] = {}
    calls = {item.name: lambda item=item: iterates.update({item.name: cgls(item, y)}) for item in methods}
    rows = []
    for name, milliseconds in best_times(calls, repetitions, warm=True).items():
        quality = [psnr(x, truth) for x in iterates[name]]
        rows.append(f"| {title}, {name} | {milliseconds:.0f} | {max(quality):.2f} | {np.argmax(quality) + 1} |")
    return rows


def measure(quick: bool, peers: dict[str, Any]) -> Report:
    report = Report()
    small, large, fan = (256, 60, 367), (362, 100 if quick else 1000, 513), (256, 360, 512)
    few, many = (1, 1) if quick else (3, 15)
    cone(report, (32, 20, 48) if quick else (128, 60, 192), few)
    groups = {
        "Parallel 256x256, 60 x 367": parallel_methods(*small, peers),
        f"Parallel 362x362, {large[1]} x 513": parallel_methods(*large, peers),
        "Fan 256x256, 360 x 512": fan_methods(*fan, peers),
    }
    first, second, third = groups
    speed(report, first, 256, groups[first], {"forward": 0.20, "adjoint": 0.30, "error": 1.15}, many)
    limits = {"forward": 0.15, "adjoint": 0.25, "FBP": 0.20, "error": 1.15, "FBP dB below": 0.2}
    speed(report, second, 362, groups[second], limits, few)
    speed(report, third, 256, groups[third], {"forward": 1.0, "adjoint": 1.5, "error": 1.15}, few)
    memory(report, groups)
    matched(report, peers)
    kept = ("fourier, replicas=0", "fourier, replicas=1", "astra linear")
    rows = cgls_rows(first, 256, [item for item in groups[first] if item.name in (*kept, "joseph")], few)
    rows += cgls_rows(second, 362, [item for item in groups[second] if item.name in kept], 1)
    report.table("15 iterations of CGLS, 1 % noise", "| | ms | best dB | at iteration |", rows)
    return report


def available_peers() -> dict[str, Any]:
    peers = {}
    for name, module in PEERS.items():
        try:
            peers[name] = importlib.import_module(module)
        except Exception as error:  # any failure only means that this peer is left out
            print(f"{name} left out: {error}", file=sys.stderr)
    return peers


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    sets = [name for name in ("avx2", "avx512f", "amx_tile") if name in facts.get("flags", "").split()]
    return ", ".join([facts.get("model name", platform.processor()), *sets])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the large case, a small cone, one repetition")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    peers = available_peers()
    report = measure(arguments.quick, peers)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", *peers))
    header = f"""# CT projectors: speed, accuracy and memory beside the peers

    OMP_NUM_THREADS=1 python benchmarks/ct.py{" --quick" * arguments.quick} --output {arguments.output or "FILE"}

Best process CPU time (user + system) in ms on one thread, all implementations called in turn in one process; ratios
are to ASTRA `linear`, for the fan to `line_fanflat`, in the same run. `fourier` and `joseph` are ours.
{versions}; {processor()}.

float32, pixels of 1 mm; bins of 1 mm, for the fan a flat detector with bins of 1.2 mm, the source 500 mm before and the
detector 300 mm behind the axis. Error: relative, of the projections of an ellipse phantom, averaged over its pixels,
against its exact line integrals, averaged over the bins. FBP: of those exact projections with the plain ramp, PSNR
inside the inscribed disc; ASTRA's is our ramp filter and its backprojection, that of `joseph` for a parallel beam
backprojects by the Fourier transform. Peak memory: image, sinogram and all that torch's allocator held during
`A(x).backward(y)` (not the tables, which an operator keeps, nor the work space inside FFT and sparse product), over
image and sinogram. CGLS is one loop for all. Not measured: deepinv, which needs torchvision; LEAP, which has no wheel;
the cone beam of ASTRA, which needs CUDA.
"""
    goals = ["## Goals", "", "| | measured | at most | |", "|---|--:|--:|---|", *report.goals]
    text = "\n".join([header, *report.lines, *goals]) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()

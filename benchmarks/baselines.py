"""Quality and time of the classical solvers on simulated scans of real slices, beside sigpy and BART.

    python benchmarks/baselines.py table SLICES.h5
    python benchmarks/baselines.py peers SLICES.h5 --sigpy-python PYTHON [--bart]

SLICES.h5 holds `images` (n, 256, 256) uint8, `split`, `subject` and `contrast`; only the train split is read. Our
weights come from the discrepancy principle; a peer gets the weight of a grid that is best for it *with* the reference.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from treg_med.data import Measurement
from treg_med.operators import CartesianMRI, complex_gaussian_noise, random_mask
from treg_med.solvers import get_solver

SLICES = (("ms_cs_p07", "FLAIR"), ("ms_long_p03", "T1"), ("ms_long_p01", "T2"), ("ms_long_p20", "FLAIR"))
NOISE = 10 ** (-35 / 20)
METHODS = {
    "zero-filled": ("zero-filled", {}),
    "cg-sense": ("cg-sense", {}),
    "wavelet": ("wavelet", {}),
    "tv complex": ("tv", {"phase": "none"}),
    "tv two-stage, fixed phase": ("tv", {"phase_rounds": 0, "excess": 9.0}),
    "tv": ("tv", {}),
}


@dataclass(frozen=True)
class Setting:
    """One column of the table."""

    coils: int
    acceleration: int

    @property
    def title(self) -> str:
        return f"{'SC' if self.coils == 1 else 'MC'} R{self.acceleration}"


def slices(path: Path, count: int) -> list[Tensor]:
    """Return middle slices of the named train subjects, scaled to maximum one."""
    with h5py.File(path) as file:
        split, subject, contrast = (np.char.decode(file[k][:].astype("S")) for k in ("split", "subject", "contrast"))
        found = []
        for who, what in SLICES[:count]:
            index = np.flatnonzero((split == "train") & (subject == who) & np.char.startswith(contrast, what))
            image = torch.from_numpy(file["images"][index[len(index) // 2]].astype(np.float32))
            found.append(image / image.max())
    return found


def smooth_phase(side: int, seed: int) -> Tensor:
    """Return a random phase (rad) of 5 x 5 Fourier modes with standard deviation 0.8."""
    generator = torch.Generator().manual_seed(seed)
    modes = torch.zeros(side, side, dtype=torch.complex64)
    centre = slice(side // 2 - 2, side // 2 + 3)
    modes[centre, centre] = torch.randn(5, 5, dtype=torch.complex64, generator=generator)
    phase = torch.fft.ifft2(torch.fft.ifftshift(modes)).real
    return 0.8 * phase / phase.std() + 2 * torch.pi * torch.rand(1, generator=generator)


def gaussian_coils(coils: int, side: int) -> Tensor:
    """Return smooth coil maps on a ring, sum of squares one."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, side)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    maps = []
    for angle in 2 * torch.pi * torch.arange(coils) / coils:
        distance = (columns - 1.1 * torch.cos(angle)) ** 2 + (rows - 1.1 * torch.sin(angle)) ** 2
        a, b, c, d = torch.randn(4, generator=generator)
        phase = 2 * a + 1.2 * b * columns + 1.2 * c * rows + 0.5 * d * columns * rows
        maps.append(torch.polar(torch.exp(-distance / (2 * 0.75**2)), phase))
    stacked = torch.stack(maps)
    return stacked / stacked.abs().square().sum(0).sqrt()


def simulate(image: Tensor, setting: Setting, seed: int) -> Measurement:
    """Return k-space of the image with a smooth phase, coils, random columns and noise at 35 dB."""
    side = image.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    target = torch.polar(image, smooth_phase(side, 100 + seed))
    fraction = 0.08 if setting.acceleration == 4 else 0.04
    mask = random_mask((side, side), setting.acceleration, fraction, generator=generator).mask
    operator = CartesianMRI(mask, gaussian_coils(setting.coils, side) if setting.coils > 1 else None)
    clean = operator(target)
    y = clean + complex_gaussian_noise(tuple(clean.shape), NOISE, generator) * mask
    return Measurement(y=y, operator=operator, noise_std=NOISE, target=target)


def psnr(image: Tensor, reference: Tensor) -> float:
    """Return the PSNR (dB) of the magnitude, peak that of the reference."""
    error = (image.abs() - reference.abs()).square().mean().sqrt()
    return float(20 * torch.log10(reference.abs().max() / error))


def table(path: Path) -> None:
    """Print mean PSNR, residual and CPU seconds of every method and setting."""
    images = slices(path, 4)
    settings = [Setting(coils, r) for coils in (1, 8) for r in (4, 8)]
    print("| method | " + " | ".join(s.title for s in settings) + " |\n|---|" + "---|" * len(settings))
    for title, (name, options) in METHODS.items():
        cells = []
        for setting in settings:
            rows = []
            for seed, image in enumerate(images):
                data = simulate(image, setting, seed)
                start = time.process_time()
                rec = get_solver(name, **options)(data)
                rows.append((psnr(rec.image, data.target), rec.residual, time.process_time() - start))
            score, residual, seconds = np.mean(rows, 0)
            cells.append(f"{score:.2f} dB, {residual:.2f}, {seconds:.1f} s")
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


def peers(path: Path, sigpy_python: str | None, with_bart: bool) -> None:
    """Print our PSNR and each peer's best over its grid of weights, 8 coils, R = 4."""
    cases = [simulate(image, Setting(8, 4), seed) for seed, image in enumerate(slices(path, 2))]
    ours = {"cg-sense": ("cg-sense", {}), "wavelet": ("wavelet", {}), "tv": ("tv", {"phase": "none"})}
    print("| method | slice | ours | sigpy: best (weight) | BART: best (weight) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, data in enumerate(cases):
            maps = data.operator.sensitivity_maps
            np.savez(folder / f"case_{number}.npz", y=data.y.numpy(), maps=maps.numpy())
        script = str(Path(__file__).with_name("baselines_peer.py"))
        for peer, python in (("sigpy", sigpy_python), ("bart", "python3" if with_bart else None)):
            if python is not None:
                subprocess.run([python, script, peer, str(folder)], check=True)
        for method, (solver, options) in ours.items():
            for number, data in enumerate(cases):
                rec = get_solver(solver, **options)(data)
                cells = [f"{psnr(rec.image, data.target):.2f} dB, {rec.seconds:.1f} s"]
                for peer in ("sigpy", "bart"):
                    found = []
                    for result in folder.glob(f"{peer}_{method}_*_case_{number}.npz"):
                        stored = np.load(result)
                        score = psnr(torch.from_numpy(stored["image"]), data.target)
                        found.append((score, result.name.split("_")[2], float(stored["seconds"])))
                    if not found:
                        cells.append("not run")
                    else:
                        score, weight, seconds = max(found)
                        cells.append(f"{score:.2f} dB ({weight}), {seconds:.1f} s")
                print(f"| {method} | {number} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "peers"))
    parser.add_argument("slices", type=Path)
    parser.add_argument("--sigpy-python", help="a Python that has sigpy")
    parser.add_argument("--bart", action="store_true", help="also run the bart command")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "table":
        table(arguments.slices)
    else:
        peers(arguments.slices, arguments.sigpy_python, arguments.bart)


if __name__ == "__main__":
    main()

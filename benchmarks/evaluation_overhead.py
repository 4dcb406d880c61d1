"""What `treg-med evaluate` itself takes: time beside the solver per slice, and memory, over 10,000 slices.

    python benchmarks/evaluation_overhead.py [--volumes 100] [--slices 100] [--side 64]

The solver is the adjoint. Everything else is the pipeline: simulating the scans, keeping slices, writing volumes and
sidecars, scoring under two protocols, table, statistics and report. Processor time is counted, which is less disturbed
by what else the machine does. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import torch

from treg_med.data import Reconstruction, open_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.evaluation.config import read_config
from treg_med.evaluation.pipeline import RunSettings, run_evaluation
from treg_med.runs.driver import RunProgress
from treg_med.solvers.zero_filled import ZeroFilled

CONFIG = """\
version: 1
datasets: [{name: phantoms, files: "scans/*.nii.gz", subject: "p([0-9]+)"}]
scenarios: [{name: r4, reader: {acceleration: 4, noise: 0.01}}]
methods: [{label: adjoint, solver: "evaluation_overhead:TimedAdjoint"}]
protocols: [fastmri, volume]
statistics: {resamples: 999}
"""


class Memory(threading.Thread):
    """Resident memory of this process in MiB, five times a second, with the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self._stop_asked = threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop_asked.wait(0.2):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20
            self.samples.append((time.monotonic(), resident))

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()

    def highest(self, start: float, end: float) -> float:
        return max(value for when, value in self.samples if start <= when <= end)


def write_scans(folder: Path, volumes: int, slices: int, side: int) -> None:
    (folder / "scans").mkdir()
    phantom = phantom_volume((side, side), slices).movedim(0, -1).numpy()
    for number in range(volumes):
        values = (1000 * np.roll(phantom, number % side, axis=0)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), folder / "scans" / f"p{number:03d}_T1w.nii.gz")


class TimedAdjoint(ZeroFilled):
    """The adjoint, and the processor seconds that all calls together took."""

    seconds: ClassVar[float] = 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Reconstruction:
        start = time.process_time()
        result = super().__call__(*arguments, **options)
        TimedAdjoint.seconds += time.process_time() - start
        return result


def measure(folder: Path, volumes: int, slices: int, side: int) -> dict[str, float]:
    # This file run as a program is another module than the one that the configuration names.
    from evaluation_overhead import TimedAdjoint as Timed

    write_scans(folder, volumes, slices, side)
    (folder / "evaluation.yaml").write_text(CONFIG)
    config, out = read_config(folder / "evaluation.yaml"), folder / "out"
    out.mkdir()
    with open_scan(folder / "scans" / "p000_T1w.nii.gz", acceleration=4, noise=0.01) as scan:
        start = time.process_time()
        for index in range(slices):
            scan[index]
        simulating = (time.process_time() - start) / slices
    cpu: dict[str, float] = {}
    wall: dict[str, float] = {}

    def mark(name: str, *, first: bool = False) -> None:
        if not first or name not in wall:
            cpu[name], wall[name] = time.process_time(), time.monotonic()

    def reconstructed(progress: RunProgress) -> None:
        if progress.volumes >= max(1, volumes // 10):
            mark("warm", first=True)
        mark("reconstructed")

    memory = Memory()
    memory.start()
    mark("start")
    settings = RunSettings(workers=1, device="cpu")
    result = run_evaluation(config, out, settings, watch=reconstructed, watch_scores=lambda *_: mark("scored"))
    mark("end")
    memory.stop()
    if result.problems or result.cases != volumes:
        raise SystemExit(f"{len(result.problems)} problems, the first: {result.problems[:1]}")
    count = volumes * slices
    solver = Timed.seconds
    found = {
        "everything": cpu["end"] - cpu["start"],
        "solver": solver,
        "simulating the scan": simulating * count,
        "running, keeping and writing": cpu["reconstructed"] - cpu["start"] - solver - simulating * count,
        "scoring under two protocols": cpu["scored"] - cpu["reconstructed"],
        "table, statistics and report": cpu["end"] - cpu["scored"],
        "everything but solver and simulation": cpu["end"] - cpu["start"] - solver - simulating * count,
    }
    return {f"{name}, ms per slice": 1000 * seconds / count for name, seconds in found.items()} | {
        "wall time of everything, ms per slice": 1000 * (wall["end"] - wall["start"]) / count,
        "resident memory, peak, MiB": memory.highest(wall["start"], wall["end"]),
        "its growth after the first tenth of the volumes, MiB": memory.highest(wall["warm"], wall["end"])
        - memory.highest(wall["start"], wall["warm"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("volumes", 100), ("slices", 100), ("side", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.volumes, given.slices, given.side)
    print(f"{given.volumes} volumes of {given.slices} slices of {given.side} x {given.side}, one worker, one thread\n")
    print("| | processor time |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.3g} |")


if __name__ == "__main__":
    main()

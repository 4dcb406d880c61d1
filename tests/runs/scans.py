"""Small scans for runs over volumes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from treg_med.data import simulate_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.runs.method import Method
from treg_med.runs.plan import VolumeJob

SIZE = 24
METHODS = (Method("zero-filled", "zero-filled"), Method("tv", "tv", settings={"max_iterations": 3}))


def write_scan(path: Path, *, slices: int = 2, seed: int = 0) -> Path:
    """Two-coil k-space with a target."""
    images = phantom_volume((SIZE, SIZE), slices) * (1 + 0.1 * seed)
    return simulate_scan(images, path, coils=2, acceleration=2.0, seed=seed)


def write_scans(folder: Path, count: int, *, slices: int = 2) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [write_scan(folder / f"scan{k:02d}.h5", slices=slices, seed=k) for k in range(count)]


def write_volume(path: Path, *, slices: int = 3) -> Path:
    """A magnitude volume with a position in space."""
    values = 100 * phantom_volume((SIZE, SIZE), slices).movedim(0, -1).numpy()
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([2.0, 2.0, 4.0, 1.0])), path)
    return path


def jobs(paths: list[Path], out: Path, *, report: bool = False, **settings: object) -> list[VolumeJob]:
    return [VolumeJob(path, METHODS, out, report=report, **settings) for path in paths]  # type: ignore[arg-type]


def outputs(root: Path) -> dict[str, bytes]:
    """Everything in an output tree but the index, whose entries hold times."""
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "index.jsonl"}

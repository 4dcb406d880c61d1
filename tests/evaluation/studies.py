"""A small study in a folder: three subjects, two scenarios, two methods."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from treg_med.data.phantoms import phantom_volume
from treg_med.evaluation.config import ConfigFile, read_config

SUBJECTS = 3
CONFIG = """\
version: 1
datasets:
  - {name: brain, files: "scans/*.nii.gz", slices: "::2"}
scenarios:
  - {name: r2, reader: {acceleration: 2, coils: 2, noise: 0.01}}
  - {name: r4, reader: {acceleration: 4, coils: 2, noise: 0.01}}
methods:
  - {label: zf, solver: zero-filled}
  - {label: tv, solver: tv, settings: {max_iterations: 5}}
protocols: [fastmri, volume]
statistics: {resamples: 199}
"""
# Every prompt of a learned method, one slice.
ARMS = """\
version: 1
datasets: [{name: brain, files: "scans/*.nii.gz", slices: "1"}]
scenarios: [{name: r2, reader: {acceleration: 2}}]
methods:
  - {label: tv, solver: tv, settings: {max_iterations: 3}}
  - {label: treg, solver: treg, settings: {steps: 2}, control: true, arms: [right, empty, wrong, shuffled]}
seeds: [0, 1]
protocols: fastmri
statistics: {resamples: 199}
"""


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    affine = np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.set_sform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def brain(number: int) -> np.ndarray:
    values = phantom_volume((32, 32), 4).movedim(0, -1).numpy()
    return 100 * np.roll(values, number, axis=0)


def study(folder: Path) -> ConfigFile:
    for number in range(SUBJECTS):
        save(folder / "scans" / f"p{number}_T2w.nii.gz", brain(number))
    return written(folder, CONFIG)


def written(folder: Path, text: str) -> ConfigFile:
    path = folder / "evaluation.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)

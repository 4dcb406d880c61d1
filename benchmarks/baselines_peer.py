"""Reconstruct the cases that baselines.py wrote, with sigpy or BART; runs where treg_med is not installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

GRID = {
    "cg-sense": (0.01, 0.03, 0.1),
    "wavelet": (0.003, 0.004, 0.006, 0.009),
    "tv": (0.006, 0.009, 0.012, 0.024),
}


def sigpy(method: str, weight: float, y: Any, maps: Any) -> Any:
    from sigpy.mri import app

    options = {"show_pbar": False}
    if method == "cg-sense":
        return app.SenseRecon(y, maps, lamda=weight, max_iter=60, **options).run()
    recon = app.L1WaveletRecon if method == "wavelet" else app.TotalVariationRecon
    # Its total variation is a primal-dual iteration that needs more steps than FISTA.
    return recon(y, maps, weight, max_iter=100 if method == "wavelet" else 300, **options).run()


def bart(method: str, weight: float, y: Any, maps: Any) -> Any:
    rule = {
        "cg-sense": ["-l2", "-r", str(weight)],
        "wavelet": ["-R", f"W:3:0:{weight}"],
        "tv": ["-R", f"T:3:0:{weight}"],
    }[method]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, array in (("y", y), ("maps", maps)):
            _write(root / name, np.moveaxis(array, 0, -1)[:, :, None, :])
        files = [str(root / name) for name in ("y", "maps", "x")]
        command = ["bart", "pics", "-w", "1", "-i", "100", *rule, *files]
        subprocess.run(command, check=True, capture_output=True)
        return _read(root / "x")


def _write(path: Path, array: Any) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _read(path: Path) -> Any:
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F").squeeze()


def main(peer: str, folder: Path) -> None:
    run = {"sigpy": sigpy, "bart": bart}[peer]
    for path in sorted(folder.glob("case_*.npz")):
        case = np.load(path)
        for method, weights in GRID.items():
            for weight in weights:
                start = time.perf_counter()
                image = run(method, weight, case["y"], case["maps"])
                seconds = time.perf_counter() - start
                np.savez(folder / f"{peer}_{method}_{weight}_{path.stem}.npz", image=image, seconds=seconds)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""The latent methods against the exact posterior of a Gaussian prior; writes the table of docs/solvers.md.

    python benchmarks/solvers_exact.py > docs/solvers.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.solvers import exact
from treg_med.solvers import get_solver
from treg_med.solvers.latent_solver import LatentSolver

#: Method, preset, whether the denoiser is differentiated, settings beside the preset.
ROWS: tuple[tuple[str, str, str, dict[str, object]], ...] = (
    ("treg", "paper", "no", {"guidance_scale": 1.0}),
    ("treg", "paper-gradient", "yes", {"guidance_scale": 1.0}),
    ("ldps", "default", "yes", {"steps": 100}),
    ("ldps", "paper", "yes", {}),
    ("psld", "default", "yes", {"steps": 100}),
    ("psld", "paper", "yes", {}),
    ("p2l", "default", "yes", {"steps": 100}),
    ("dds", "default", "no", {"steps": 100}),
    ("dds", "paper", "no", {}),
    ("dds", "contextmri", "no", {}),
    ("diffpir", "default", "no", {"steps": 100}),
    ("diffpir", "paper", "no", {}),
    ("mpgd", "default", "no", {"steps": 100}),
    ("mpgd", "paper", "no", {}),
    ("resample", "default", "yes", {"steps": 100}),
    ("resample", "paper", "yes", {}),
    ("projdiff", "default", "no", {"steps": 100}),
    ("projdiff", "paper", "no", {}),
)
DRAWS = 4
TEXT = f"""# Solvers: what they do to an exact posterior

    python benchmarks/solvers_exact.py > docs/solvers.md

Gaussian images of 16 x 16 pixels in [-1, 1], correlated over four pixels, measured by 11 of 16 columns of k-space with
a known phase; the denoiser, the posterior mean and the posterior deviation are exact. All methods start from noise and
end with their sample (no classical start, no last step to the data), on {3 * exact.COUNT} problems; the spread is that
of {DRAWS} draws of the same problem.

- *to the mean*, *to the truth*: root-mean-square distances in posterior deviations. An exact sampler has 1.00 and 1.41,
  the posterior mean 0 and 1.00.
- *spread*: deviation of draws over the posterior deviation. Below one the draws say less than is uncertain: never read
  the spread of such a method as an uncertainty.
- *residual*: misfit in noise units. A real image cannot follow all of the noise of complex data: the best fit has
  {{least:.2f}}.
- *NFE*: evaluations of the denoiser; *backprop*: whether it is differentiated.

| method | preset | NFE | backprop | to the mean | to the truth | spread | residual |
|---|---|--:|---|--:|--:|--:|--:|"""


def main() -> None:
    """Print the page."""
    torch.set_num_threads(1)
    print(TEXT.format(least=exact.least_residual(exact.data(exact.COUNT, 0)[1])))
    for name, preset, backprop, settings in ROWS:
        solver = get_solver(name, preset, **settings)
        if not isinstance(solver, LatentSolver):
            raise TypeError(f"{name} has no sampler to test")
        drawn, spread = exact.posterior_statistics(solver), exact.spread_ratio(solver, draws=DRAWS)
        print(
            f"| {name} | {preset} | {drawn.evaluations} | {backprop} | {drawn.to_mean:.2f} | {drawn.to_truth:.2f} "
            f"| {spread:.2f} | {drawn.residual:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

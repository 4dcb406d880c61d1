"""(f) Go or no-go, second half: the truth noised to t, then solved, against the classical bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treg_med.assessment.bars import ORACLE_BAR
from treg_med.assessment.statistics import mean_and_error
from treg_med.data.records import Measurement
from treg_med.data.simulation import KspaceSimulation
from treg_med.operators import CartesianMRI
from treg_med.priors.base import Prediction, Prior
from treg_med.solvers.noise_levels import NoiseLevel, noise_levels
from treg_med.solvers.prior_space import PriorSpace
from treg_med.solvers.problem import Problem
from treg_med.solvers.total_variation import TotalVariation
from treg_med.solvers.treg import TReg
from treg_med.training.slices import CaptionedSlices

__all__ = ["NOISE", "OracleStart", "oracle_start", "oracle_treg"]

#: Noise of the simulated k-space per sample, 35 dB below the image's maximum.
NOISE = 10 ** (-35 / 20)
_ACCELERATION = 4.0


@dataclass(frozen=True)
class OracleStart:
    """PSNR in dB (data range the slice maximum) by method; gains over two-stage total variation with standard error."""

    source: str
    slices: int
    timestep: int
    acceleration: float
    psnr_db: dict[str, float]
    gain_db: dict[str, tuple[float, float]]
    bar_db: float
    met: bool


def oracle_start(
    prior: Prior,
    slices: CaptionedSlices,
    source: str,
    *,
    timestep: int = 500,
    seed: int = 0,
    steps: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> OracleStart:
    """Solve a single coil at R=4 from the truth noised to `timestep`, from the classical start, and classically.

    The k-space is simulated from magnitude slices, an inverse crime, with a smooth phase and noise. `steps` replaces
    the default number of diffusion steps of both TReg rows.
    """
    settings: dict[str, Any] = {} if steps is None else {"steps": steps}
    scores: dict[str, list[float]] = {}
    for row in range(len(slices)):
        truth = slices.images[row, 0].float() / 255
        measurement = _measured(truth, seed + row)
        solvers = {
            "two-stage total variation": TotalVariation(),
            "TReg, default start": TReg.from_preset(**settings),
            "TReg, oracle start": oracle_treg(truth, timestep, **settings),
        }
        for name, solver in solvers.items():
            result = solver(
                measurement,
                prior=prior if solver.needs_prior else None,
                text=slices.captions[row] if solver.needs_prior else None,
                generator=torch.Generator().manual_seed(seed + row),
            )
            error = (result.image.abs() - truth).square().mean().sqrt()
            scores.setdefault(name, []).append(float(20 * (truth.max() / error).log10()))
        advance(row + 1, len(slices))
    bar, *others = scores
    gains = {
        name: mean_and_error([a - b for a, b in zip(scores[name], scores[bar], strict=True)]) for name in others
    }
    return OracleStart(
        source,
        len(slices),
        timestep,
        _ACCELERATION,
        {name: sum(values) / len(values) for name, values in scores.items()},
        gains,
        ORACLE_BAR,
        gains["TReg, oracle start"][0] >= ORACLE_BAR,
    )


def oracle_treg(truth: Tensor, timestep: int, **settings: Any) -> TReg:
    """TReg whose first network call sees the truth ``(H, W)`` noised to `timestep`; all else is the solver's own.

    Only the first noisy latent comes from the truth: classical image, phase, data steps and later levels do not.
    """
    known_truth: list[Tensor] = []

    class OracleTReg(TReg):
        def _levels(self, space: PriorSpace) -> list[NoiseLevel]:
            known_truth[:] = [space.encode(space.codec.encode(truth * space.problem.scale))]
            last = super()._levels(space)[-1].std
            alpha = space.prior.alphas_cumprod[timestep].to(last)
            first = (((1 - alpha) / alpha).sqrt() / space.gain).expand_as(last)
            return noise_levels(space.prior, space.gain, torch.maximum(first, last), last, self.steps)

        def _noised(
            self,
            problem: Problem,
            prior: Prior,
            known: Tensor,
            before: Prediction | None,
            level: NoiseLevel,
            own: Tensor,
        ) -> Tensor:
            start = known if before is not None else known_truth[0].to(known)
            return super()._noised(problem, prior, start, before, level, own)

    return OracleTReg.from_preset(**settings)


def _measured(truth: Tensor, seed: int) -> Measurement:
    simulation = KspaceSimulation(acceleration=_ACCELERATION, noise=NOISE, seed=seed)
    mask = simulation.make_mask((truth.shape[0], truth.shape[1]))
    peak = float(truth.max())
    simulated = simulation.slice(truth, 0, mask, peak)
    return Measurement(
        y=simulated.kspace,
        operator=CartesianMRI(mask.mask),
        noise_std=NOISE * peak,
        provenance={"simulated": True},
    )

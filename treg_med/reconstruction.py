"""The one-call interface: a measurement and a sentence in, an image out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treg_med.data.records import Measurement, Reconstruction
from treg_med.errors import ConfigError, ResourceError
from treg_med.solvers.base import Solver
from treg_med.solvers.problem import Callback, residual_in_noise_units
from treg_med.solvers.registry import get_solver
from treg_med.solvers.working_units import check_data
from treg_med.words.safe_text import check_text

if TYPE_CHECKING:
    from treg_med.priors.base import Prior

__all__ = ["best_device", "child_seed", "reconstruct"]

_SEED_BITS = 63


def reconstruct(
    measurement: Measurement,
    text: str | None = None,
    solver: str | Solver = "treg",
    prior: Prior | str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    preset: str = "default",
    samples: int = 1,
    callback: Callback | None = None,
    **settings: Any,
) -> Reconstruction:
    """Reconstruct an image from a measurement, optionally with a sentence about what was scanned.

    Parameters
    ----------
    measurement
        Data ``(*batch, *operator.range_shape)`` in the raw units of their file, with the operator that made
        them.
    text
        Prompt; None is the empty prompt.
    solver
        A name of :func:`treg_med.available_solvers`, or a solver instance.
    prior
        Diffusion prior, or the folder of one; None is the embedded default, loaded only if the solver needs
        it.
    seed
        Every random number follows from it, the slice index and the sample number, and from nothing else.
    device
        Where to compute; None is the best available. The image is returned on the device of the measurement.
    preset
        Named settings of the solver.
    samples
        Number of runs with different random numbers, for solvers that draw any. More than one: the image is
        their mean, and the last history entry holds the standard deviation of the magnitude per pixel
        (``spread``) and the residuals of the single samples.
    callback
        Called with a :class:`~treg_med.solvers.Progress` after each step; returning True ends that reconstruction with
        the image so far.
    **settings
        Settings of the solver, overriding the preset.

    Returns
    -------
    Reconstruction
        Image in the raw units of the measurement, residual in noise units, what was done and what to be
        warned of.

    Raises
    ------
    ConfigError
        For an unknown solver, preset, setting or device name, a bad seed or sample count, or an over-long
        text.
    NumericsError
        If the data or the result are not finite.
    GeometryError
        If the data do not fit the operator.
    ResourceError
        If the device or the prior is not there.

    Examples
    --------
    >>> import torch, treg_med as tm
    >>> op = tm.operators.CartesianMRI(torch.ones(32, 32))
    >>> m = tm.Measurement(y=op(torch.ones(32, 32)), operator=op, noise_std=0.1)
    >>> tm.reconstruct(m, solver="zero-filled").image.shape
    torch.Size([32, 32])
    """
    method = _method(solver, preset, settings)
    _check_count("seed", seed, 0)
    _check_count("samples", samples, 1)
    messages = list(check_text(text))
    check_data(measurement.y, measurement.operator)
    target = best_device() if device is None else _device(device)
    loaded = _prior(prior, target) if method.needs_prior else None
    if samples > 1 and not method.stochastic:
        messages.append(f"solver {method.name!r} draws no random numbers; one sample was computed, not {samples}")
        samples = 1
    moved = measurement.to(target)
    runs = []
    for sample in range(samples):
        generator = torch.Generator().manual_seed(child_seed(seed, _slice_index(measurement), sample))
        runs.append(method(moved, prior=loaded, text=text, generator=generator, callback=callback))
    result = runs[0] if samples == 1 else _mean(runs)
    return replace(
        result,
        image=result.image.to(measurement.y.device),
        seed=seed,
        settings={**result.settings, "preset": preset, "samples": samples, "device": str(target)},
        warnings=tuple(dict.fromkeys((*result.warnings, *messages))),
        measurement=measurement,
    )


def best_device() -> torch.device:
    """Return the first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def child_seed(seed: int, *path: int) -> int:
    """Return a seed that depends on ``seed`` and the path (slice, sample, ...) only.

    Hashing keeps the streams of neighbouring slices unrelated, and batch size, order and resuming without
    effect.
    """
    digest = hashlib.sha256("/".join(str(int(part)) for part in (seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def _method(solver: str | Solver, preset: str, settings: dict[str, Any]) -> Solver:
    if isinstance(solver, Solver):
        if settings or preset != "default":
            raise ConfigError(
                "expected a solver name together with a preset or settings, got a solver instance; "
                "pass the name, or build the instance with those settings"
            )
        return solver
    return get_solver(solver, preset, **settings)


def _check_count(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"expected {name} to be an integer of at least {minimum}, got {value!r}")


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"expected a device such as 'cpu' or 'cuda:0', got {name!r}") from error
    if device.type == "cuda":
        available = torch.cuda.device_count()
        if (device.index or 0) >= available:
            raise ResourceError(f"expected one of {available} CUDA devices, got {name!r}; pass device='cpu'")
    return device


def _prior(prior: Prior | str | Path | None, device: torch.device) -> Any:
    if prior is None:
        return _default_prior().to(device)
    if isinstance(prior, str | Path):
        from treg_med.priors import LatentPrior

        return LatentPrior.from_pretrained(prior, device=device)
    move = getattr(prior, "to", None)
    return prior if move is None else move(device)


@lru_cache(maxsize=1)
def _default_prior() -> Any:
    """Load the embedded prior once per process."""
    from treg_med.priors import LatentPrior

    return LatentPrior.from_pretrained()


def _slice_index(measurement: Measurement) -> int:
    return 0 if measurement.geometry is None else measurement.geometry.slice_index


def _mean(runs: list[Reconstruction]) -> Reconstruction:
    """Average samples; the residual is that of the mean."""
    first = runs[0]
    images = torch.stack([run.image for run in runs])
    image = images.mean(0)
    measurement = first.measurement
    residual = float("nan")
    if measurement is not None:
        noise = torch.as_tensor(first.settings["noise_std"], device=image.device)
        residual = float(
            residual_in_noise_units(measurement.operator, image, measurement.y, noise, measurement.weights)
            .square()
            .mean()
            .sqrt()
        )
    magnitude = images.abs() if images.is_complex() else images
    summary = {
        "stage": "samples",
        "step": len(runs),
        "spread": magnitude.std(0).cpu(),
        "residuals": [run.residual for run in runs],
        "residual": residual,
    }
    return replace(
        first,
        image=image,
        residual=residual,
        nfe=sum(run.nfe for run in runs),
        seconds=sum(run.seconds for run in runs),
        peak_memory_mb=max(run.peak_memory_mb for run in runs),
        history=[*first.history, summary],
        domain_distance=_mean_distance(runs),
        warnings=tuple(dict.fromkeys(message for run in runs for message in run.warnings)),
    )


def _mean_distance(runs: list[Reconstruction]) -> float | None:
    known = [run.domain_distance for run in runs if run.domain_distance is not None]
    return sum(known) / len(known) if known else None

"""From a measurement in raw units to the problem that solvers see: whitened, of unit norm, an image of about one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from treg_med.data.records import Measurement
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import LinearOperator, Operator, Scaled
from treg_med.operators.weighted import Weighted
from treg_med.solvers.problem import Callback, Problem, per_image

__all__ = ["check_data", "problem_of"]

# A zero-filled image whose maximum lies outside this range says that the measurement's scale was not set.
_PLAUSIBLE_MAXIMUM = (0.1, 10.0)
# Below this fraction of the root-mean-square sample a noise level is that of float32 rounding, not of a
# scanner.
_NOISE_FLOOR = 1e-4
# A floor of a tenth of a photon keeps the logarithm of a starved ray from erring by more than about a decade, whatever
# its weight says: measured at 60 views and 2e3 to 4e3 photons, with and without readout noise.
_LARGEST_LOG_VARIANCE = 6.0
# Norms that count as one: those of coils whose maps are of unit length, whatever the mask takes away.
_UNIT_NORM_TOLERANCE = 0.05


def problem_of(
    measurement: Measurement,
    operator: Operator | None,
    prior: Any,
    text: str | None,
    generator: torch.Generator | None,
    callback: Callback | None,
    weighted: bool,
) -> tuple[Problem, Tensor]:
    """Check the measurement and bring it to working units; also return the noise level in raw units."""
    operator = measurement.operator if operator is None else operator
    y = measurement.y
    check_data(y, operator)
    messages: list[str] = []
    events = len(operator.range_shape)
    batch = y.shape[: y.ndim - events]
    _norm(operator)
    noise = _noise_std(measurement, operator, messages)
    weights = measurement.weights
    y, operator, level = _whitened(y, operator, weights, noise, weighted)
    rms = y.abs().square().sum(tuple(range(-events, 0))).div(operator.n_measured()).sqrt()
    floor = _NOISE_FLOOR * rms
    if bool((level < floor).any()):
        messages.append(
            f"noise_std is below {_NOISE_FLOOR:g} of the root-mean-square sample; "
            "that fraction was used instead as the noise unit"
        )
        noise, level = torch.maximum(noise, floor), torch.maximum(level, floor)
    y, operator, level = _of_unit_norm(y, operator, level)
    scale = _working_scale(measurement, y, operator, messages).expand(batch)
    problem = Problem(
        y=y * per_image(scale, events),
        operator=operator,
        noise_std=level.expand(batch) * scale,
        scale=scale,
        prior=prior,
        text=text,
        generator=generator,
        callback=callback,
        geometry=measurement.geometry,
        mu_water=measurement.mu_water,
    )
    for message in (*measurement.warnings, *messages):
        problem.warn(message)
    problem.note(noise_std=noise.expand(batch), scale=problem.scale)
    return problem, noise


def _whitened(
    y: Tensor, operator: Operator, weights: Tensor | None, noise: Tensor, weighted: bool
) -> tuple[Tensor, Operator, Tensor]:
    """Return data, operator and noise level as whitened by the weights, or by none but those of missing samples."""
    if weights is None:
        return y, operator, noise
    if not isinstance(operator, LinearOperator):
        raise ConfigError(
            f"expected a linear operator for data with statistical weights, got {type(operator).__name__}; "
            "leave the weights out"
        )
    weights = weights.to(y.real.dtype)
    measured = weights > 0
    if not weighted:
        variances = noise[..., None].square() / weights[measured]
        if operator.image_unit:
            variances = variances.clamp_max(_LARGEST_LOG_VARIANCE)
        noise = variances.mean(-1).sqrt()
        if bool(measured.all()):
            return y, operator, noise
        weights = measured.to(y.real.dtype)
    return y * weights.sqrt(), Weighted(operator, weights), noise


def _of_unit_norm(y: Tensor, operator: Operator, noise: Tensor) -> tuple[Tensor, Operator, Tensor]:
    """Divide data, linear operator and noise level by its norm; one within a twentieth of one is left as it is."""
    if not isinstance(operator, LinearOperator):
        return y, operator, noise
    norm = _norm(operator)
    if abs(norm - 1) <= _UNIT_NORM_TOLERANCE:
        return y, operator, noise
    return y / norm, Scaled(operator, 1 / norm), noise / norm


def _norm(operator: Operator) -> float:
    """Return the norm of an operator, a scale that need not be exact, or raise where nothing can be done with it."""
    norm = operator.norm(max_iter=30, rtol=1e-3)
    if not (math.isfinite(norm) and norm > 0):
        raise GeometryError(
            f"expected an operator with a norm above zero, got {norm:g} from {operator!r}: it must pass something of "
            "the image and nothing that is not finite; check its geometry"
        )
    return norm


def check_data(y: Tensor, operator: Operator) -> None:
    """Refuse data that do not fit the operator, are not finite or hold only zeros.

    Raises
    ------
    GeometryError
        For a wrong or empty shape.
    NumericsError
        For NaN, Inf, or a batch item of zeros.
    """
    shape = tuple(operator.range_shape)
    if y.ndim < len(shape) or tuple(y.shape[y.ndim - len(shape) :]) != shape or y.numel() == 0:
        raise GeometryError(
            f"expected data of shape (*batch, {', '.join(map(str, shape))}) as the operator gives, "
            f"got {tuple(y.shape)}; build the operator for this data"
        )
    finite = torch.isfinite(torch.view_as_real(y) if y.is_complex() else y)
    if not bool(finite.all()):
        bad = int(finite.numel() - finite.sum())
        raise NumericsError(
            f"expected finite data, got {bad} NaN or Inf values among {finite.numel()}; "
            "mask those samples out or read the file again"
        )
    if not bool((y != 0).flatten(-len(shape)).any(-1).all()):
        raise NumericsError("expected data with signal, got only zeros; check the file and the mask")


def _noise_std(measurement: Measurement, operator: Operator, messages: list[str]) -> Tensor:
    """Return the noise level in raw units, estimated where the measurement does not know it."""
    y = measurement.y
    if measurement.noise_std is not None:
        return torch.as_tensor(float(measurement.noise_std), dtype=y.abs().dtype, device=y.device)
    batch = y.shape[: y.ndim - len(operator.range_shape)]
    # One estimate per item: a result must not depend on its neighbours.
    values = [_estimated_noise(operator, item, measurement.weights) for item in y.reshape(-1, *operator.range_shape)]
    estimate = torch.tensor(values, device=y.device, dtype=y.abs().dtype).reshape(batch)
    shown = ", ".join(f"{value:.4g}" for value in estimate.flatten().tolist())
    messages.append(f"noise_std was not given; estimated from the data as {shown} (raw units)")
    return estimate


def _estimated_noise(operator: Operator, y: Tensor, weights: Tensor | None) -> float:
    answer: Any = operator.noise_std(y, weights)
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    if isinstance(answer, Tensor) or not (math.isfinite(answer) and answer >= 0):
        got = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"{answer}"
        raise ConfigError(
            f"expected {type(operator).__name__}.noise_std(y) to return one number >= 0, got {got}; "
            "give the measurement its noise_std"
        )
    return float(answer)


def _working_scale(measurement: Measurement, y: Tensor, operator: Operator, messages: list[str]) -> Tensor:
    """Return the factor from raw to working units; from the data where the given one is implausible."""
    scale = float(measurement.scale)
    start = operator.start(y)
    if start is None:
        if scale != 1 and not operator.homogeneous:
            raise ConfigError(
                f"expected a measurement of scale 1 for {type(operator).__name__}, which knows absolute levels, got "
                f"{scale:g}; build the operator for images with a maximum of about one"
            )
        return torch.full(y.shape[: y.ndim - len(operator.range_shape)], scale, dtype=y.dtype, device=y.device)
    peak = start.abs().flatten(-len(operator.domain_shape)).amax(-1)
    given = torch.full_like(peak, scale)
    low, high = _PLAUSIBLE_MAXIMUM
    implausible = ((peak * scale < low) | (peak * scale > high)) & (peak > 0)
    if bool(implausible.any()):
        messages.append(
            f"the measurement's scale {scale:g} does not bring the image maximum to about 1; "
            "it was set from a first image"
        )
    return torch.where(implausible, 1.0 / peak.clamp_min(torch.finfo(peak.dtype).tiny), given)

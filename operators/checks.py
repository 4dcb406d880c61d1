"""A public battery that tells whether an operator keeps the contract of `LinearOperator`."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.errors import GeometryError, NumericsError
from treg_med.operators.base import LinearOperator

__all__ = ["OperatorCheck", "OperatorReport", "check_operator"]

# Bounds on the relative mismatch of the adjoint (and of everything that follows from it).
_BOUND = {
    torch.float32: 5e-6,
    torch.complex64: 5e-6,
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
}
_N_PROBES = 16


@dataclass(frozen=True)
class OperatorCheck:
    """One property of an operator: a measured relative error and what it must not exceed."""

    name: str
    value: float
    bound: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound (NaN is not)."""
        return self.value <= self.bound


@dataclass(frozen=True)
class OperatorReport:
    """What `check_operator` measured."""

    operator: str
    checks: tuple[OperatorCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[OperatorCheck, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def __getitem__(self, name: str) -> OperatorCheck:
        """Return the check called ``name``."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def raise_on_failure(self) -> None:
        """Raise `NumericsError` naming the failed checks, if there are any."""
        if not self.passed:
            raise NumericsError(f"operator check failed\n{self}")

    def __str__(self) -> str:
        """Return one line per check."""
        lines = [self.operator]
        for check in self.checks:
            verdict = "ok  " if check.passed else "FAIL"
            detail = f"  {check.detail}" if check.detail else ""
            lines.append(f"  {verdict} {check.name:32s} {check.value:9.2e} <= {check.bound:.0e}{detail}")
        return "\n".join(lines)


def check_operator(
    operator: LinearOperator,
    *,
    make_small: Callable[[], LinearOperator] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    max_dense_entries: int = 1 << 22,
    seed: int = 0,
    raise_on_failure: bool = False,
) -> OperatorReport:
    """Measure whether an operator is linear, has a matched adjoint, and behaves as the contract says.

    The adjoint test is dense: the matrices A of ``forward`` and B of ``adjoint`` are built column by column
    and ||B - A^H||_F / ||A||_F is reported; no rescaling is allowed. An operator too large for that is tested
    dense at the size ``make_small`` builds, and itself by white probes: for white x and y,
    E|<y, (A - B^H) x>|^2 is the squared Frobenius norm of the mismatch. (A single dot product of smooth
    vectors is no test: known unmatched pairs pass it.)

    Parameters
    ----------
    operator
        The operator.
    make_small
        Builds the same kind of operator at a small size.
    dtypes
        Precisions to test (default: single and double of the operator's field).
    max_dense_entries
        Largest matrix that is built.
    seed
        Seed of the probes.
    raise_on_failure
        Raise `NumericsError` if a check fails; otherwise nothing is ever raised, and a check that itself
        crashes is reported with value infinity.

    Returns
    -------
    Report with one entry per check and precision; bounds 5e-6 in single and 1e-12 in double precision.
    """
    if dtypes is None:
        dtypes = (
            (torch.complex64, torch.complex128) if operator.is_complex else (torch.float32, torch.float64)
        )
    checks: list[OperatorCheck] = []
    for dtype in dtypes:
        probe = _Probe(operator, dtype, torch.Generator().manual_seed(seed), max_dense_entries, make_small)
        for name, measure in _measurements(probe):
            label = f"{name}[{str(dtype).removeprefix('torch.')}]"
            checks.append(_run(label, measure, _BOUND[dtype]))
    report = OperatorReport(repr(operator), tuple(checks))
    if raise_on_failure:
        report.raise_on_failure()
    return report


def dense_matrix(
    apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the matrix of a linear map, ``(prod(range), prod(domain))``, from its action on unit vectors."""
    size = math.prod(shape)
    columns = []
    for basis in torch.eye(size, dtype=dtype, device=device).split(64):
        columns.append(apply(basis.reshape(-1, *shape)).reshape(basis.shape[0], -1))
    return torch.cat(columns).mT


@dataclass
class _Probe:
    """An operator with what the measurements need to test it in one precision."""

    operator: LinearOperator
    dtype: torch.dtype
    generator: torch.Generator
    max_dense_entries: int
    make_small: Callable[[], LinearOperator] | None

    def image(self, *batch: int) -> Tensor:
        return self._random((*batch, *self.operator.domain_shape))

    def data(self, *batch: int) -> Tensor:
        return self._random((*batch, *self.operator.range_shape))

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        device = next((b.device for b in self.operator.buffers()), torch.device("cpu"))
        return torch.randn(shape, dtype=self.dtype, generator=self.generator).to(device)

    def is_dense(self, operator: LinearOperator) -> bool:
        return math.prod(operator.domain_shape) * math.prod(operator.range_shape) <= self.max_dense_entries


def _measurements(probe: _Probe) -> Iterator[tuple[str, Callable[[], float]]]:
    small = probe.operator if probe.is_dense(probe.operator) else None
    if small is None and probe.make_small is not None:
        small = probe.make_small()
    if small is not None:
        yield "adjoint (dense)", lambda: _dense_mismatch(small, probe)
        yield "gram (dense)", lambda: _dense_gram_mismatch(small, probe)
    yield "adjoint (white probes)", lambda: _probed_mismatch(probe)
    yield "dot test", lambda: _dot_test(probe)
    yield "linearity", lambda: _linearity(probe, probe.operator, probe.image)
    yield "linearity of adjoint", lambda: _linearity(probe, probe.operator.adjoint, probe.data)
    yield "gram", lambda: _gram(probe)
    yield "gradient", lambda: _gradient(probe)
    yield "forward-mode gradient", lambda: _forward_mode(probe)
    yield "batch", lambda: _batch(probe)
    yield "dtype", lambda: _dtype(probe)
    yield "input untouched", lambda: _input_untouched(probe)
    yield "wrong shape refused", lambda: _wrong_shape(probe)
    yield "pickle", lambda: _pickle(probe)
    yield "norm above zero", lambda: _norm(probe)
    yield "answers", lambda: _answers(probe)


def _run(name: str, measure: Callable[[], float], bound: float) -> OperatorCheck:
    try:
        return OperatorCheck(name, float(measure()), bound)
    except Exception as error:  # noqa: BLE001 - a crash of the operator is a finding, not a failure of the check
        return OperatorCheck(name, math.inf, bound, f"{type(error).__name__}: {error}")


def _difference(a: Tensor, b: Tensor) -> float:
    """Return ||a - b|| / ||b|| (||a|| where b = 0)."""
    if a.shape != b.shape:
        return math.inf
    scale = float(torch.linalg.vector_norm(b))
    return float(torch.linalg.vector_norm(a - b)) / (scale or 1.0)


def _inner(a: Tensor, b: Tensor) -> complex:
    double = torch.complex128 if a.is_complex() else torch.float64
    return complex(torch.vdot(a.flatten().to(double), b.flatten().to(double)).item())


def _dense_mismatch(operator: LinearOperator, probe: _Probe) -> float:
    device = probe.image().device
    forward = dense_matrix(operator, operator.domain_shape, probe.dtype, device)
    adjoint = dense_matrix(operator.adjoint, operator.range_shape, probe.dtype, device)
    return _difference(adjoint, forward.mH)


def _dense_gram_mismatch(operator: LinearOperator, probe: _Probe) -> float:
    device = probe.image().device
    forward = dense_matrix(operator, operator.domain_shape, probe.dtype, device)
    gram = dense_matrix(operator.gram, operator.domain_shape, probe.dtype, device)
    return _difference(gram, forward.mH @ forward)


def _probed_mismatch(probe: _Probe) -> float:
    mismatch, norm = 0.0, 0.0
    for _ in range(_N_PROBES):
        x, y = probe.image(), probe.data()
        ax = probe.operator(x)
        mismatch += abs(_inner(y, ax) - _inner(probe.operator.adjoint(y), x)) ** 2
        norm += float(torch.linalg.vector_norm(ax)) ** 2
    return math.sqrt(mismatch / norm) if norm else math.sqrt(mismatch)


def _dot_test(probe: _Probe) -> float:
    x, y = probe.image(), probe.data()
    ax, ahy = probe.operator(x), probe.operator.adjoint(y)
    scale = float(torch.linalg.vector_norm(ax) * torch.linalg.vector_norm(y))
    return abs(_inner(ax, y) - _inner(x, ahy)) / (scale or 1.0)


def _linearity(probe: _Probe, apply: Callable[[Tensor], Tensor], draw: Callable[[], Tensor]) -> float:
    first, second = draw(), draw()
    a, b = (0.7 - 0.4j, -1.3 + 0.2j) if probe.operator.is_complex else (0.7, -1.3)
    return _difference(apply(a * first + b * second), a * apply(first) + b * apply(second))


def _gram(probe: _Probe) -> float:
    x, operator = probe.image(), probe.operator
    reference = operator.adjoint(operator(x))
    return max(_difference(operator.gram(x), reference), _difference(operator.gram.adjoint(x), reference))


def _gradient(probe: _Probe) -> float:
    """Gradient of 1/2 ||A x - y||^2 against A^H (A x - y), then a Hessian-vector product against A^H A v."""
    x, y, v = probe.image().requires_grad_(), probe.data(), probe.image()
    operator = probe.operator
    loss = (operator(x) - y).abs().square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    (hessian,) = torch.autograd.grad(gradient, x, grad_outputs=v)
    with torch.no_grad():
        expected = operator.adjoint(operator(x) - y)
        curvature = operator.adjoint(operator(v))
    return max(_difference(gradient.detach(), expected), _difference(hessian, curvature))


def _forward_mode(probe: _Probe) -> float:
    x, v = probe.image(), probe.image()
    with torch.autograd.forward_ad.dual_level():
        output = probe.operator(torch.autograd.forward_ad.make_dual(x, v))
        tangent = torch.autograd.forward_ad.unpack_dual(output).tangent
        if tangent is None:
            return math.inf
        tangent = tangent.clone()
    return _difference(tangent, probe.operator(v))


def _batch(probe: _Probe) -> float:
    """Two leading axes, one, none and an empty one must give the same items."""
    worst = 0.0
    for apply, draw in ((probe.operator, probe.image), (probe.operator.adjoint, probe.data)):
        x = draw(2, 2)
        together = apply(x)
        one_axis = apply(x.flatten(0, 1))
        single = torch.stack([torch.stack([apply(item) for item in row]) for row in x])
        if apply(x[:0]).shape != together[:0].shape:
            return math.inf
        worst = max(worst, _difference(together, single), _difference(one_axis, single.flatten(0, 1)))
    return worst


def _dtype(probe: _Probe) -> float:
    """Precision follows the input; real, conjugated and strided input of a complex operator is taken."""
    x, operator = probe.image(), probe.operator
    if operator(x).dtype != probe.dtype or operator.adjoint(operator(x)).dtype != probe.dtype:
        return math.inf
    strided = torch.stack([x, x], dim=-1)[..., 0]
    error = _difference(operator(strided), operator(x))
    if operator.is_complex:
        error = max(error, _difference(operator(x.real), operator(x.real.to(probe.dtype))))
        error = max(error, _difference(operator(x.conj()), operator(x.conj().resolve_conj())))
    return error


def _input_untouched(probe: _Probe) -> float:
    x, y = probe.image(), probe.data()
    before = x.clone(), y.clone()
    outputs = probe.operator(x), probe.operator.adjoint(y), probe.operator.gram(x)
    for output in outputs:
        output.mul_(2) if output.data_ptr() not in (x.data_ptr(), y.data_ptr()) else None
    return max(_difference(x, before[0]), _difference(y, before[1]))


def _wrong_shape(probe: _Probe) -> float:
    for apply, draw in ((probe.operator, probe.image), (probe.operator.adjoint, probe.data)):
        x = draw()
        try:
            apply(torch.cat([x, x], dim=-1))
        except GeometryError:
            continue
        return math.inf
    return 0.0


def _pickle(probe: _Probe) -> float:
    copy = pickle.loads(pickle.dumps(probe.operator))  # noqa: S301 - our own bytes
    x, y = probe.image(), probe.data()
    return max(
        _difference(copy(x), probe.operator(x)), _difference(copy.adjoint(y), probe.operator.adjoint(y))
    )


def _norm(probe: _Probe) -> float:
    """Return by how much an image is amplified beyond the norm that the operator states."""
    stated, images = probe.operator.norm(), probe.image(4)
    if not (math.isfinite(stated) and stated > 0):
        return math.inf
    gains = probe.operator(images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    return max(0.0, float(gains.max()) / (1.01 * stated) - 1)


def _answers(probe: _Probe) -> float:
    """Return zero if what the operator says of a measurement has the right shape and is JSON; raise if not."""
    operator, y = probe.operator, probe.data()
    if operator.measured is not None:
        y = y * torch.broadcast_to(operator.measured, operator.range_shape)
    if operator.start(y).shape != operator.domain_shape:
        raise GeometryError(f"start gives an image {tuple(operator.start(y).shape)}, not {operator.domain_shape}")
    if not 0 < operator.n_measured() <= math.prod(operator.range_shape):
        raise GeometryError(f"{operator.n_measured()} samples are measured of {math.prod(operator.range_shape)}")
    diagonal = operator.fourier_diagonal().values
    if diagonal.shape != operator.domain_shape or not bool((diagonal >= 0).all()):
        raise GeometryError("fourier_diagonal is not a field of numbers >= 0 of the shape of an image")
    json.dumps(operator.facts(), allow_nan=False)
    try:
        level = float(operator.noise_std(y))
    except NumericsError:
        return 0.0  # too few samples to tell
    return 0.0 if math.isfinite(level) and level >= 0 else math.inf

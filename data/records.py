"""The three records that travel between readers, solvers and writers.

Contract. A record is a frozen dataclass: nobody changes it in place, ``dataclasses.replace`` makes another
one. Images are ``(*batch, H, W)``, k-space is ``(*batch, coils, H, W)``; lengths are in mm; ``noise_std`` is
in the units of the measurement. ``scale`` is information only: a solver may work on ``image * scale`` but
returns raw units.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.notice import RESEARCH_ONLY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from treg_med.operators.contract import Operator

__all__ = ["RESEARCH_ONLY", "Geometry", "Measurement", "Reconstruction"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the image array sits in the patient and which way up it is shown.

    ``[x, y, z, 1] = affine @ [row, column, slice, 1]`` in mm, RAS+.

    Parameters
    ----------
    affine
        (4, 4) float64, from the (row, column, slice) index of the image array to RAS+ mm.
    shape
        (rows, columns, slices) of the whole scan.
    slice_index
        Which slice of the scan this record belongs to.
    sform_code, qform_code
        NIfTI codes of the source; both 0 means that the position in the patient is unknown.
    xyzt_units
        NIfTI units code (2 is mm).
    known
        False when the file carried no geometry and ``affine`` is a placeholder of 1 mm voxels.
    storage
        (3, 2) nibabel orientation: for each image axis (row, column, slice) the axis of the stored volume and
        +1 or -1.
    display_rot90, display_flip
        How the raw array is turned to be shown upright: that many quarter turns anticlockwise, then a
        left-right mirror.

    Raises
    ------
    GeometryError
        If the affine is not a finite, invertible (4, 4) array or the slice index lies outside ``shape``.
    """

    affine: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    shape: tuple[int, int, int] = (1, 1, 1)
    slice_index: int = 0
    sform_code: int = 0
    qform_code: int = 0
    xyzt_units: int = 2
    known: bool = False
    storage: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] = ((0, 1), (1, 1), (2, 1))
    display_rot90: int = 0
    display_flip: bool = False

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(
                f"expected a finite 4 x 4 affine, got shape {affine.shape} with values "
                f"{affine.ravel()[:4]}...; "
                "repair the header (for NIfTI: its sform or qform)"
            )
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise GeometryError(
                f"expected an invertible affine, got determinant {np.linalg.det(affine[:3, :3]):.3g}; "
                "repair the voxel sizes in the header"
            )
        if not 0 <= self.slice_index < max(self.shape[2], 1):
            raise GeometryError(f"expected a slice index below {self.shape[2]}, got {self.slice_index}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring rows, columns and slices, in mm."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[0]), float(steps[1]), float(steps[2])

    def at_slice(self, index: int) -> Geometry:
        """Return the same geometry for another slice of the scan."""
        return replace(self, slice_index=index)

    def to_display(self, image: Tensor) -> Tensor:
        """Turn a raw image ``(*batch, H, W)`` upright; the inverse of :meth:`from_display`."""
        turned = torch.rot90(image, self.display_rot90 % 4, (-2, -1))
        return turned.flip(-1) if self.display_flip else turned

    def from_display(self, image: Tensor) -> Tensor:
        """Turn an upright image ``(*batch, H, W)`` back to the raw array axes."""
        raw = image.flip(-1) if self.display_flip else image
        return torch.rot90(raw, -self.display_rot90 % 4, (-2, -1))

    def __repr__(self) -> str:
        """Show shape, spacing and whether the position is known."""
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        turn = f", shown with rot90={self.display_rot90}, flip={self.display_flip}"
        upright = self.display_rot90 % 4 == 0 and not self.display_flip
        known = "" if self.known else ", unknown geometry"
        return (
            f"Geometry({self.shape}, {spacing} mm, slice {self.slice_index}{'' if upright else turn}{known})"
        )


def _move(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _check_weights(weights: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(weights.shape) != expected:
        raise GeometryError(
            f"expected weights of shape {expected} (the operator's range, one for the whole batch), got "
            f"{tuple(weights.shape)}"
        )
    usable = not weights.is_complex() and bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())
    if not usable or not bool((weights > 0).any()):
        raise NumericsError(
            "expected finite weights >= 0 with at least one above 0; give samples that were not measured the weight 0"
        )


def _html_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    return f"<table><caption><b>{html.escape(title)}</b></caption>{cells}</table>"


@dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """One incomplete measurement and the physics that made it: ``y = A x + n``.

    Parameters
    ----------
    y
        Measured data, trailing shape ``operator.range_shape`` (k-space: ``(*batch, coils, H, W)``), raw units
        of the file.
    operator
        The forward model A, linear or not, domain ``(H, W)``.
    noise_std
        Noise level per measured sample (complex: E|n|^2 = noise_std^2) in the units of ``y``; None if
        unknown.
    scale
        Factor that brings the maximum of a typical image to about 1: ``image * scale``.
    target
        Reference image ``(H, W)`` in the units of the image, if there is one.
    geometry
        Where the slice sits in the patient.
    provenance
        What is known about the origin; copied into the sidecar of every output.
    weights
        Relative statistical weights of the samples, the operator's range shape: ``Var(y_i) = noise_std^2 / w_i``,
        of mean one over the samples that were measured, so that ``noise_std`` stays the typical level. A sample of
        weight zero was not measured. None: all one.
    mu_water
        Attenuation of water in 1/mm where the image is an attenuation with a Hounsfield scale,
        ``HU = 1000 (mu - mu_water) / mu_water``; else None.

    Raises
    ------
    GeometryError
        If ``y``, ``target`` or ``weights`` do not fit the operator.
    NumericsError
        If ``noise_std`` is negative, ``scale`` or ``mu_water`` is not positive and finite, or the weights are
        negative, not finite or all zero.
    """

    y: Tensor
    operator: Operator
    noise_std: float | None = None
    scale: float = 1.0
    target: Tensor | None = None
    geometry: Geometry | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weights: Tensor | None = None
    mu_water: float | None = None

    def __post_init__(self) -> None:
        expected = tuple(self.operator.range_shape)
        if tuple(self.y.shape[-len(expected) :]) != expected:
            raise GeometryError(
                f"expected data of trailing shape {expected} (the operator's range), got "
                f"{tuple(self.y.shape)}; "
                "build the operator from the mask and maps that belong to these data"
            )
        domain = tuple(self.operator.domain_shape)
        if self.target is not None and tuple(self.target.shape[-len(domain) :]) != domain:
            raise GeometryError(
                f"expected a target of shape {domain} (the operator's domain), got {tuple(self.target.shape)}"
            )
        if self.noise_std is not None and not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise NumericsError(
                f"expected noise_std >= 0 and finite, got {self.noise_std}; pass None if unknown"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise NumericsError(f"expected a positive finite scale, got {self.scale}")
        if self.weights is not None:
            _check_weights(self.weights, expected)
        if self.mu_water is not None and not (math.isfinite(self.mu_water) and self.mu_water > 0):
            raise NumericsError(
                f"expected mu_water > 0 in 1/mm, got {self.mu_water}; pass None where the image has no Hounsfield scale"
            )
        object.__setattr__(self, "provenance", dict(self.provenance))

    @property
    def simulated(self) -> bool:
        """Whether the data were computed from an image instead of measured."""
        return bool(self.provenance.get("simulated", False))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything a reader of a result from these data must know."""
        return tuple(self.provenance.get("warnings", ()))

    def to(self, device: torch.device | str) -> Measurement:
        """Return the measurement on another device; this one is left as it is."""
        if self.y.device == torch.device(device):
            return self
        operator = self.operator.to(device)
        return replace(
            self,
            y=self.y.to(device),
            operator=operator,
            target=_move(self.target, device),
            weights=_move(self.weights, device),
        )

    def _facts(self) -> list[tuple[str, str]]:
        noise = "unknown" if self.noise_std is None else f"{self.noise_std:.4g}"
        if self.noise_std is not None and self.provenance.get("noise_std") == "estimated":
            noise += " (estimated)"
        facts = [
            ("data", f"{tuple(self.y.shape)} {str(self.y.dtype).removeprefix('torch.')} on {self.y.device}"),
            ("operator", f"{type(self.operator).__name__} {tuple(self.operator.domain_shape)}"),
            ("noise std", noise),
            ("scale", f"{self.scale:.4g}"),
            ("target", "yes" if self.target is not None else "no"),
            ("origin", "simulated" if self.simulated else "measured"),
        ]
        if self.weights is not None:
            measured = self.weights[self.weights > 0]
            facts.append(("weights", f"{float(measured.min()):.3g} to {float(measured.max()):.3g}"))
        if self.mu_water is not None:
            facts.append(("mu_water", f"{self.mu_water:.4g} 1/mm"))
        acceleration = self.operator.facts().get("acceleration")
        if acceleration is not None:
            facts.insert(2, ("acceleration", f"{acceleration:.2f}"))
        if self.geometry is not None:
            facts.append(("geometry", repr(self.geometry)))
        return facts

    def __repr__(self) -> str:
        """Show shape, operator, noise, scale and origin on a few lines."""
        return "Measurement(\n" + "".join(f"  {k}: {v}\n" for k, v in self._facts()) + ")"

    def _repr_html_(self) -> str:
        rows = self._facts() + [("warning", w) for w in self.warnings]
        return _html_table("Measurement", rows)


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction:
    """An image, how it was made and how well it fits the data.

    ``residual = sqrt(sum |A x - y|^2 / (n_sampled * noise_std^2))``; 1 means a fit to the noise level.

    Parameters
    ----------
    image
        (H, W), complex for MRI and real for CT, in the raw units of the measurement.
    residual
        Misfit in noise units, NaN when the noise level is unknown.
    nfe
        Number of evaluations of the denoising network.
    seconds, peak_memory_mb
        Wall time and peak memory (MiB) of the solver.
    solver, text, seed, settings
        Everything needed to run it again.
    history
        One dictionary per step.
    warnings
        Sentences that belong beside the image.
    measurement
        What it was reconstructed from.
    domain_distance
        How far the image lies from what the prior was trained on: below one as its validation slices do, above one the
        prior is not to be trusted; None where no prior was used, or its card does not tell.
    """

    image: Tensor
    residual: float = float("nan")
    nfe: int = 0
    seconds: float = float("nan")
    peak_memory_mb: float = float("nan")
    solver: str = ""
    text: str | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    warnings: tuple[str, ...] = ()
    measurement: Measurement | None = None
    domain_distance: float | None = None

    def __post_init__(self) -> None:
        if self.image.ndim < 2:
            raise GeometryError(f"expected an image (H, W), got shape {tuple(self.image.shape)}")
        object.__setattr__(self, "settings", dict(self.settings))
        object.__setattr__(self, "warnings", tuple(self.warnings))

    @property
    def magnitude(self) -> Tensor:
        """``|image|`` for MRI; the image itself where it is real."""
        return self.image.abs() if self.image.is_complex() else self.image

    @property
    def hounsfield(self) -> Tensor:
        """The attenuation in Hounsfield units, ``1000 (mu - mu_water) / mu_water``.

        Raises
        ------
        ConfigError
            If the measurement does not know the attenuation of water.
        """
        mu_water = None if self.measurement is None else self.measurement.mu_water
        if mu_water is None:
            raise ConfigError(
                "expected a measurement with mu_water, got one without a Hounsfield scale; "
                "set Measurement.mu_water (1/mm) if the image is an attenuation"
            )
        return 1000 * (self.magnitude - mu_water) / mu_water

    @property
    def upright(self) -> Tensor:
        """The magnitude turned the way it is shown, head up."""
        geometry = self.measurement.geometry if self.measurement is not None else None
        return self.magnitude if geometry is None else geometry.to_display(self.magnitude)

    def to(self, device: torch.device | str) -> Reconstruction:
        """Return the reconstruction, with its measurement, on another device."""
        measurement = None if self.measurement is None else self.measurement.to(device)
        return replace(self, image=self.image.to(device), measurement=measurement)

    def show(self, ax: Axes | None = None, *, window: tuple[float, float] | None = None) -> Figure:
        """Draw the magnitude, upright and in grey, into ``ax`` or a new figure; returns the figure.

        ``window`` is black and white: in HU for CT with mu_water, else in units of the image.
        """
        from treg_med.data.figures import show_reconstruction

        return show_reconstruction(self, ax, window=window)

    def compare(
        self,
        others: Sequence[Reconstruction] = (),
        *,
        difference: bool = True,
        window: tuple[float, float] | None = None,
    ) -> Figure:
        """Draw this and others in one window (as in `show`), with a row of differences if there is a target."""
        from treg_med.data.figures import compare_reconstructions

        return compare_reconstructions([self, *others], difference=difference, window=window)

    def _facts(self) -> list[tuple[str, str]]:
        dtype = str(self.image.dtype).removeprefix("torch.")
        facts = [
            ("solver", self.solver or "unnamed"),
            ("image", f"{tuple(self.image.shape)} {dtype}"),
            ("residual", f"{self.residual:.3f} noise units"),
            ("text", "none" if self.text is None else repr(self.text)),
            ("seed", str(self.seed)),
            ("cost", f"{self.seconds:.2f} s, {self.nfe} network evaluations, {self.peak_memory_mb:.0f} MiB"),
        ]
        if self.domain_distance is not None:
            facts.insert(3, ("domain distance", f"{self.domain_distance:.2f} (limit 1)"))
        if self.measurement is not None and self.measurement.simulated:
            facts.append(("origin", "simulated measurement"))
        return facts

    def __repr__(self) -> str:
        """Show solver, residual, text and cost on a few lines."""
        return "Reconstruction(\n" + "".join(f"  {k}: {v}\n" for k, v in self._facts()) + ")"

    def _repr_html_(self) -> str:
        from treg_med.data.figures import html_picture

        rows = self._facts() + [("warning", w) for w in self.warnings]
        picture = html_picture(self.upright)
        return (
            f"<div>{picture}{_html_table('Reconstruction', rows)}<p><small>{RESEARCH_ONLY}</small></p></div>"
        )

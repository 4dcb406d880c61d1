"""The CPU projectors of the ASTRA toolbox behind the interface of the package, for comparison."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treg_med.errors import ConfigError, ResourceError
from treg_med.operators.base import LinearOperator
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.ct_rays import FanRays

__all__ = ["AstraProjector"]

_KINDS = {False: ("linear", "line", "strip"), True: ("line_fanflat", "strip_fanflat")}


class AstraProjector(LinearOperator):
    """Line integrals of a `ParallelBeamCT` or flat `FanBeamCT` as ASTRA computes them, in single precision on the CPU.

    Parameters
    ----------
    geometry
        The operator whose image, rays and lengths are taken.
    kind
        Discretisation: ``"linear"``, ``"line"`` or ``"strip"`` for a parallel beam (default linear),
        ``"line_fanflat"`` or ``"strip_fanflat"`` for a fan (default line_fanflat).

    Raises
    ------
    ResourceError
        If the ASTRA toolbox (GPLv3, extra ``ct``) is not installed.
    ConfigError
        For a curved detector or a kind that does not fit the beam.

    van Aarle et al., Ultramicroscopy 157 (2015) 35.
    """

    physical = True

    def __init__(self, geometry: CTOperator, kind: str | None = None) -> None:
        super().__init__(geometry.domain_shape, geometry.range_shape, is_complex=False)
        rays = geometry.rays
        kinds = _KINDS[isinstance(rays, FanRays)]
        if isinstance(rays, FanRays) and rays.shape != "flat":
            raise ConfigError("expected a flat detector, as ASTRA knows no curved one; use FanBeamCT itself")
        if kind is not None and kind not in kinds:
            raise ConfigError(f"expected a kind out of {', '.join(kinds)} for a {rays.describe()}, got {kind!r}")
        self.geometry, self.kind = geometry, kind or kinds[0]
        self._matrix()

    def _forward(self, x: Tensor) -> Tensor:
        return self._items(x, self.domain_shape, self._matrix())

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._items(y, self.range_shape, self._matrix().T)

    def _items(self, values: Tensor, shape: tuple[int, ...], matrix: Any) -> Tensor:
        other = self.range_shape if shape == self.domain_shape else self.domain_shape
        batch = values.shape[: values.ndim - len(shape)]
        flat = values.detach().cpu().float().reshape(-1, math.prod(shape)).numpy()
        made = [torch.from_numpy(np.asarray(matrix @ item, dtype=np.float32)) for item in flat]
        return torch.stack(made).reshape(*batch, *other).to(values)

    def _matrix(self) -> Any:
        return self._cached("matrix", self._build)

    def _build(self) -> Any:
        try:
            astra = import_module("astra")
        except ImportError as error:
            raise ResourceError(
                f"the ASTRA toolbox cannot be used ({error}); install the extra 'ct', or use the geometry itself"
            ) from error
        geometry, rays = self.geometry, self.geometry.rays
        (height, width), size = geometry.image_shape, geometry.pixel_size
        angles = rays.angles.numpy()
        axis = np.stack([np.cos(angles), np.sin(angles)], 1)
        ray = np.stack([-np.sin(angles), np.cos(angles)], 1)
        middle = axis * ((rays.n_bins - 1) / 2 - rays.axis) * rays.bin_size
        # Rows of a parallel beam hold its direction, of a fan its source; then the detector's middle and its step.
        name, start, detector = "parallel_vec", ray, middle
        if isinstance(rays, FanRays):
            name, start = "fanflat_vec", -rays.source_origin * ray
            detector = middle + rays.origin_detector * ray
        vectors = np.concatenate([start, detector, axis * rays.bin_size], 1)
        volume = astra.create_vol_geom(
            height, width, -width * size / 2, width * size / 2, -height * size / 2, height * size / 2
        )
        projections = astra.create_proj_geom(name, rays.n_bins, vectors)
        return astra.OpTomo(astra.create_projector(self.kind, projections, volume))

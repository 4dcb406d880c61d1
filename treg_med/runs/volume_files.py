"""What is made of a finished volume from the files that were written and nothing else: picture, page, index entry."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from treg_med.data import Measurement, Reconstruction
from treg_med.data.atomic import StagedFiles
from treg_med.data.orientation import slices_geometry, to_images, to_volume
from treg_med.data.records import Geometry
from treg_med.data.reference import reference_slice
from treg_med.data.source import SliceSource
from treg_med.runs.plan import MethodPlan, VolumePlan

__all__ = ["index_facts", "write_figure", "write_page"]


def write_figure(plan: VolumePlan, scan: SliceSource, path: Path, scratch: Path) -> None:
    """Draw the methods side by side at the middle slice into ``path``; ``scratch`` is for what is unfinished."""
    position = len(plan.indices) // 2
    measurement = scan[plan.indices[position]]
    shown = [_shown(plan, each, measurement, position) for each in plan.methods]
    # The last method comes first, so that the grey scale is its own and not that of a blurred image.
    figure = shown[-1].compare(shown[-2::-1]) if len(shown) > 1 else shown[0].show()
    with StagedFiles(overwrite=True, scratch=scratch) as staged:
        figure.savefig(staged.path(path), dpi=150, format="png", metadata={"Software": None})
        staged.commit()


def write_page(plan: VolumePlan, scan: SliceSource, path: Path, scratch: Path) -> None:
    """Write the HTML page ``path``; ``scratch`` is for what is unfinished."""
    from treg_med.report.volume_page import write_volume_page

    sidecars = [plan.sidecar(each) for each in plan.methods]
    write_volume_page(path, sidecars, _target_volume(plan, scan), title=plan.name.base, scratch=scratch)


def index_facts(plan: VolumePlan, each: MethodPlan) -> dict[str, Any]:
    """Return what the index says of an output, as far as its sidecar tells: seconds and memory are not in it."""
    facts: dict[str, Any] = json.loads(plan.sidecar(each).read_text(encoding="utf-8"))
    slices = facts["slices"]
    residuals = [one["residual_noise_units"] for one in slices]
    domain = facts.get("domain_distance")
    return {
        "label": each.method.label,
        "run_hash": each.run_hash,
        "slices": len(slices),
        "seconds": None,
        "peak_memory_mb": None,
        "network_evaluations": sum(one["network_evaluations"] for one in slices),
        "residual_noise_units": math.nan if None in residuals else sum(residuals) / len(residuals),
        **({} if domain is None else {"domain_distance": domain["max"]}),
        "warnings": facts["warnings"],
    }


def _target_volume(plan: VolumePlan, scan: SliceSource) -> npt.NDArray[np.float32] | None:
    """Return the reference of the slices in the axes and units of the stored volumes; None where there is none."""
    images: npt.NDArray[np.float32] | None = None
    for k, index in enumerate(plan.indices):
        values = reference_slice(scan, index)
        if values is None:
            return None
        if images is None:
            images = np.empty((*values.shape, len(plan.indices)), dtype=np.float32)
        images[..., k] = values
    return None if images is None else to_volume(images, _grid(plan, scan[plan.indices[0]]))[0]


def _volume_slice(image: Path, geometry: Geometry, position: int) -> npt.NDArray[np.float32]:
    """Return slice ``position`` (row, column) of a stored volume of that geometry."""
    stored = np.asanyarray(nib.load(image).dataobj)
    return np.ascontiguousarray(to_images(stored, geometry)[..., position], dtype=np.float32)


def _grid(plan: VolumePlan, measurement: Measurement) -> Geometry:
    height, width = measurement.operator.domain_shape
    whole = measurement.geometry or Geometry(shape=(height, width, plan.indices[-1] + 1))
    return slices_geometry(whole, plan.indices)


def _shown(plan: VolumePlan, each: MethodPlan, measurement: Measurement, position: int) -> Reconstruction:
    facts: dict[str, Any] = json.loads(plan.sidecar(each).read_text(encoding="utf-8"))
    image = _volume_slice(plan.image(each), _grid(plan, measurement), position)
    mu_water = measurement.mu_water
    if mu_water is not None:
        image = np.float32(mu_water) * (1 + image / np.float32(1000))
    residual = facts["slices"][position]["residual_noise_units"]
    return Reconstruction(
        torch.from_numpy(image),
        residual=float("nan") if residual is None else residual,
        # The label tells a method from its control, which is the same solver.
        solver=each.method.label,
        text=each.method.text,
        measurement=measurement,
    )

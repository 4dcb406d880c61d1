"""What is made of a finished volume: picture, page, index entry."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from treg_med.data.atomic import StagedFiles
from treg_med.data.figures import Panel, compare_panels, method_title
from treg_med.data.orientation import slices_geometry, to_images, to_volume
from treg_med.data.records import Geometry
from treg_med.runs.kept_slices import KeptSlices, SlicePlace
from treg_med.runs.plan import MethodPlan, VolumePlan

__all__ = ["index_facts", "write_figure", "write_page"]


def write_figure(plan: VolumePlan, slices: KeptSlices, path: Path, scratch: Path) -> None:
    """Draw the methods side by side at the middle slice into ``path``; ``scratch`` is for what is unfinished."""
    position = len(plan.indices) // 2
    place = slices.place(plan.indices[position])
    shown = [_panel(plan, each, slices, place, position) for each in plan.methods]
    figure = compare_panels(
        # The last method comes first, so that the grey scale is its own and not that of a blurred image.
        shown[::-1],
        None if place.target is None else torch.from_numpy(_raw_units(place.target, place.mu_water)),
        mu_water=place.mu_water,
        simulated=place.simulated,
    )
    with StagedFiles(overwrite=True, scratch=scratch) as staged:
        figure.savefig(staged.path(path), dpi=150, format="png", metadata={"Software": None})
        staged.commit()


def write_page(plan: VolumePlan, slices: KeptSlices, path: Path, scratch: Path) -> None:
    """Write the HTML page ``path``; ``scratch`` is for what is unfinished."""
    from treg_med.report.volume_page import write_volume_page

    sidecars = [plan.sidecar(each) for each in plan.methods]
    write_volume_page(path, sidecars, _target_volume(plan, slices), title=plan.name.base, scratch=scratch)


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


def _target_volume(plan: VolumePlan, slices: KeptSlices) -> npt.NDArray[np.float32] | None:
    """Return the reference of the slices in the axes and units of the stored volumes; None where there is none."""
    images: npt.NDArray[np.float32] | None = None
    for k, index in enumerate(plan.indices):
        place = slices.place(index)
        if place.target is None:
            return None
        if images is None:
            images = np.empty((*place.target.shape, len(plan.indices)), dtype=np.float32)
            grid = _grid(plan, place)
        images[..., k] = place.target
    return None if images is None else to_volume(images, grid)[0]


def _grid(plan: VolumePlan, place: SlicePlace) -> Geometry:
    height, width = place.shape
    whole = place.geometry or Geometry(shape=(height, width, plan.indices[-1] + 1))
    return slices_geometry(whole, plan.indices)


def _panel(plan: VolumePlan, each: MethodPlan, slices: KeptSlices, place: SlicePlace, position: int) -> Panel:
    record = slices.record(each, plan.indices[position])
    if record is not None:
        image, residual = record.written, record.residual
    else:
        facts = json.loads(plan.sidecar(each).read_text(encoding="utf-8"))
        stored = np.asanyarray(nib.load(plan.image(each)).dataobj)
        image = np.ascontiguousarray(to_images(stored, _grid(plan, place))[..., position], dtype=np.float32)
        known = facts["slices"][position]["residual_noise_units"]
        residual = math.nan if known is None else known
    # The label tells a method from its control, which is the same solver.
    title = method_title(each.method.label, residual)
    return Panel(torch.from_numpy(_raw_units(image, place.mu_water)), title, place.geometry)


def _raw_units(image: npt.NDArray[np.float32], mu_water: float | None) -> npt.NDArray[np.float32]:
    """Return the attenuation (1/mm) of Hounsfield units, or what is none as it is."""
    return image if mu_water is None else np.float32(mu_water) * (1 + image / np.float32(1000))

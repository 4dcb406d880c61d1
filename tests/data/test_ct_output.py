"""CT out: Hounsfield units with the affine, 1/mm where there is no water, and a window that shows something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.data.ct_files import write_hounsfield, write_htc
from treg_med.data import Reconstruction, VolumeWriter, open_scan
from treg_med.data.figures import compare_reconstructions, hounsfield_window, show_reconstruction
from treg_med.data.writer import is_complete
from treg_med.errors import ConfigError, GeometryError


def test_hounsfield_units_come_out_where_the_volume_had_them(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "a.nii")
    with open_scan(tmp_path / "a.nii", views=10) as scan, VolumeWriter(tmp_path, "out") as writer:
        for m in scan:
            writer.add(Reconstruction(m.target, measurement=m, solver="truth"))
    before, after = nib.load(tmp_path / "a.nii"), nib.load(writer.image_path)
    assert np.allclose(after.get_fdata(), before.get_fdata(), atol=0.01)
    assert np.allclose(after.affine, before.affine)
    assert is_complete(writer.sidecar_path)
    facts = json.loads(writer.sidecar_path.read_text())
    assert facts["unit"] == "HU"
    assert facts["mu_water_per_mm"] == 0.0192
    assert "Hounsfield" in facts["outputs"]["magnitude"]["content"]
    assert facts["input"]["beam"] == "parallel"
    assert "coils" not in facts["input"]
    assert any("inverse crime" in w for w in facts["warnings"])


def test_without_water_attenuation_comes_out(tmp_path: Path) -> None:
    with open_scan(write_htc(tmp_path / "a.h5")) as scan:
        m = scan[0]
    with VolumeWriter(tmp_path, "out") as writer:
        writer.add(Reconstruction(m.target, measurement=m))
    facts = json.loads(writer.sidecar_path.read_text())
    assert facts["unit"] == "1/mm"
    assert "mu_water_per_mm" not in facts
    assert nib.load(writer.image_path).get_fdata().max() == pytest.approx(float(m.target.max()), rel=1e-5)


def test_slices_of_one_volume_have_one_unit(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "a.nii")
    with open_scan(tmp_path / "a.nii", views=10) as scan:
        first, second = scan[0], scan[1]
    writer = VolumeWriter(tmp_path, "out")
    writer.add(Reconstruction(first.target, measurement=first))
    with pytest.raises(GeometryError, match="one unit"):
        writer.add(Reconstruction(second.target, measurement=replace(second, mu_water=0.02)))


def test_the_window_fits_the_content() -> None:
    tissue = torch.full((64, 64), -1000.0)
    tissue[8:56, 8:56] = 40.0
    assert hounsfield_window(tissue) == (-160.0, 240.0)
    chest = tissue.clone()
    chest[16:48, 12:30] = -800.0
    assert hounsfield_window(chest) == (-1000.0, 1000.0)
    assert hounsfield_window(torch.full((8, 8), -1000.0)) == (-1000.0, 1000.0)


def test_figures_take_a_window_in_hounsfield_units(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "a.nii")
    with open_scan(tmp_path / "a.nii", views=10) as scan:
        m = scan[0]
    rec = Reconstruction(m.target, measurement=m, solver="truth")
    shown = show_reconstruction(rec, window=(-200.0, 300.0)).axes[0].images[0].get_clim()
    assert shown == pytest.approx((0.0192 * 0.8, 0.0192 * 1.3))
    default = compare_reconstructions([rec, rec]).axes[0].images[0].get_clim()
    assert default == pytest.approx((0.0, 0.0384))
    assert rec.compare([rec], window=(-200.0, 300.0)).axes[0].images[0].get_clim() == pytest.approx(shown)
    assert rec.show(window=(-200.0, 300.0)).axes[0].images[0].get_clim() == pytest.approx(shown)
    with pytest.raises(ConfigError, match="black < white"):
        show_reconstruction(rec, window=(100.0, 0.0))

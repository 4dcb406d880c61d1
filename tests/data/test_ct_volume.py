"""CT volumes in Hounsfield units: told from MR, mended, simulated with a finer model, and said to be simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

from tests.data.ct_files import disc_image, write_hounsfield
from treg_med.data import open_scan, validate_source
from treg_med.data.ct_simulation import CTSimulation
from treg_med.data.ct_volume import HounsfieldReader
from treg_med.data.nifti import looks_like_hounsfield
from treg_med.data.phantoms import phantom_volume, write_nifti
from treg_med.data.simulate_ct import is_hounsfield_volume, simulate_ct_scan
from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError
from treg_med.operators.filtered_backprojection import filtered_backprojection
from treg_med.operators.hounsfield_units import MU_WATER


def test_a_volume_in_hounsfield_units_is_ct_and_a_magnitude_is_not(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "ct.nii.gz")
    write_nifti(tmp_path / "mr.nii.gz", phantom_volume())
    assert looks_like_hounsfield(tmp_path / "ct.nii.gz")
    assert not looks_like_hounsfield(tmp_path / "mr.nii.gz")
    with open_scan(tmp_path / "ct.nii.gz") as scan:
        assert isinstance(scan, HounsfieldReader)
    with open_scan(tmp_path / "mr.nii.gz") as scan:
        assert scan.header.format == "NIfTI magnitude"
    with pytest.raises(ConfigError, match="no option views"):
        open_scan(tmp_path / "mr.nii.gz", views=30)
    with pytest.raises(ConfigError, match="no option acceleration.*views"):
        open_scan(tmp_path / "ct.nii.gz", acceleration=4.0)


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_the_target_explains_the_counts_to_the_noise(tmp_path: Path, beam: str) -> None:
    hu = write_hounsfield(tmp_path / "chest.nii")
    with open_scan(tmp_path / "chest.nii", beam=beam, views=180, photons=2e4) as scan:
        m = scan[1]
        assert validate_source(scan)
        assert scan.header.text == "Axial CT slice of the chest"
    assert m.target is not None
    assert m.mu_water == MU_WATER
    assert torch.allclose(m.target, torch.from_numpy(MU_WATER * (1 + hu / 1000)), atol=1e-6)
    residual = (m.operator(m.target) - m.y) * m.weights.sqrt() / m.noise_std
    # Two sub-rays per bin and lines instead of strips: the model is not the one that made the data.
    assert 1.0 <= float(residual.square().mean().sqrt()) < 1.6
    image = filtered_backprojection(m.operator, m.y, "hann")
    assert float((image - m.target).abs().mean()) < 0.0013
    for flipped in (m.target.flip(0), m.target.flip(1)):
        assert float((image - flipped).abs().mean()) > 0.0015


def test_everything_says_that_it_is_simulated(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "a.nii")
    with open_scan(tmp_path / "a.nii", views=30, photons=1e4, electronic_std=5.0, seed=3) as scan:
        m = scan[0]
        assert "inverse crime" in repr(scan)
    assert m.simulated
    operation = m.provenance["operations"][-1]
    settings = {"views": 30, "photons": 1e4, "electronic_std": 5.0, "seed": 3, "sub_rays": 2}
    assert ({"operation": "simulate CT"} | settings).items() <= operation.items()
    assert m.provenance["noise_std"] == "from the counts"


def test_noise_belongs_to_the_slice(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "a.nii")
    with open_scan(tmp_path / "a.nii", views=20) as a, open_scan(tmp_path / "a.nii", views=20, seed=1) as b:
        again = open_scan(tmp_path / "a.nii", views=20)
        assert torch.equal(a[2].y, again[2].y)
        assert not torch.equal(a[2].y, a[1].y)
        assert not torch.equal(a[2].y, b[2].y)


def test_without_photons_there_is_no_noise(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "a.nii")
    with open_scan(tmp_path / "a.nii", views=20, photons=None) as scan:
        m = scan[0]
    assert (m.noise_std, m.weights) == (0.0, None)


@pytest.mark.parametrize(
    ("settings", "note"),
    [({"padding": -2000.0}, "padding"), ({"padding": -3024.0}, "padding"), ({"dtype": "uint16"}, "65536 subtracted")],
)
def test_padding_and_wrapped_integers_are_mended_and_said(tmp_path: Path, settings: dict[str, Any], note: str) -> None:
    write_hounsfield(tmp_path / "a.nii", **settings)
    with open_scan(tmp_path / "a.nii", views=20) as scan:
        m = scan[0]
        assert isinstance(scan, HounsfieldReader)
    assert any(note in w for w in m.warnings)
    assert m.target is not None
    assert float(m.target.min()) >= 0.0
    assert float(m.target.max()) == pytest.approx(MU_WATER * 1.64, rel=0.01)


def test_phase_images_are_no_ct(tmp_path: Path) -> None:
    phase = np.random.default_rng(0).integers(-4096, 4095, (12, 12, 3)).astype(np.int16)
    nib.Nifti1Image(phase, np.eye(4)).to_filename(tmp_path / "phase.nii")
    with pytest.raises(FormatError, match="HU"):
        open_scan(tmp_path / "phase.nii")


def test_pixels_must_be_square(tmp_path: Path) -> None:
    write_hounsfield(tmp_path / "a.nii", spacing=(5.0, 4.0, 8.0))
    with pytest.raises(GeometryError, match=r"4 x 5 mm.*resample"):
        open_scan(tmp_path / "a.nii")
    write_hounsfield(tmp_path / "b.nii", spacing=(5.0, 5.02, 8.0))
    with open_scan(tmp_path / "b.nii", views=10) as scan:
        assert scan[0].operator.pixel_size == pytest.approx(5.01, abs=0.001)


@pytest.mark.parametrize(
    "options",
    [
        {"views": 0}, {"views": 2.5}, {"arc": 0.0}, {"arc": 400.0}, {"photons": 0.0}, {"photons": float("nan")},
        {"electronic_std": -1.0}, {"beam": "cone"}, {"seed": "x"}, {"mu_water": 0.192}, {"slice_axis": 3},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    write_hounsfield(tmp_path / "a.nii")
    with pytest.raises(ConfigError):
        open_scan(tmp_path / "a.nii", **options)


def test_the_detector_sees_the_whole_image() -> None:
    for beam in ("parallel", "fan"):
        simulation = CTSimulation(views=8, beam=beam)
        operator = simulation.operator((40, 56), 4.0)
        image = torch.full((40, 56), 0.001)
        edges = operator(image)[:, [0, -1]]
        assert float(edges.max()) < 0.02 * float(operator(image).max())


def _hdf5(path: Path, values: np.ndarray, **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        file["hounsfield"] = values
        file.attrs.update(attributes)
    return path


def test_hdf5_volumes_are_simulated_too(tmp_path: Path) -> None:
    hu = (disc_image((40, 44), 5.0, ((10.0, 5.0, 80.0, 1040.0),)) - 1000).astype(np.int16)
    path = _hdf5(tmp_path / "a.h5", np.stack([hu, hu]), pixel_size=5.0, anatomy="upper abdomen", plane="axial")
    with open_scan(path, views=40) as scan:
        m = scan[1]
        assert validate_source(scan)
        assert scan.header.text == "Axial CT slice of the upper abdomen"
    assert m.target is not None
    assert torch.allclose(m.target, torch.from_numpy(MU_WATER * (1 + hu / 1000.0)).float(), atol=1e-6)
    with pytest.raises(FormatError, match="pixel_size"):
        open_scan(_hdf5(tmp_path / "b.h5", hu))
    with pytest.raises(FormatError, match="HU|Hounsfield"):
        open_scan(_hdf5(tmp_path / "c.h5", np.abs(hu), pixel_size=5.0))


@pytest.mark.parametrize("settings", [{}, {"beam": "fan"}, {"photons": None}])
def test_a_simulated_scan_is_written_and_read_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_hounsfield(tmp_path / "chest.nii.gz")
    assert is_hounsfield_volume(tmp_path / "chest.nii.gz")
    out = simulate_ct_scan(tmp_path / "chest.nii.gz", tmp_path / "o.h5", views=24, slices=[1, 2], **settings)
    with open_scan(out) as scan, open_scan(tmp_path / "chest.nii.gz", views=24, **settings) as direct:
        assert validate_source(scan)
        assert scan.header.text == direct.header.text
        assert scan.header.simulated
        assert {"operation": "simulate CT", "views": 24}.items() <= scan.header.operations[1].items()
        m, d = scan[0], direct[1]
    assert torch.allclose(m.y, d.y, atol=1e-6)
    assert m.noise_std == pytest.approx(d.noise_std, rel=1e-5)
    assert m.mu_water == d.mu_water
    assert m.target is not None
    assert d.target is not None
    assert torch.equal(m.target, d.target)
    assert m.geometry is not None
    assert np.allclose(m.geometry.affine, d.geometry.affine @ _next_slice())
    assert (m.weights is None) == (d.weights is None)


def _next_slice() -> np.ndarray:
    move = np.eye(4)
    move[2, 3] = 1
    return move


def test_only_ct_is_simulated_and_nothing_is_overwritten(tmp_path: Path) -> None:
    write_nifti(tmp_path / "mr.nii", phantom_volume())
    with pytest.raises(FormatError, match="simulate_scan"):
        simulate_ct_scan(tmp_path / "mr.nii", tmp_path / "o.h5")
    write_hounsfield(tmp_path / "ct.nii")
    (tmp_path / "o.h5").write_bytes(b"precious")
    with pytest.raises(ResourceError, match="exists"):
        simulate_ct_scan(tmp_path / "ct.nii", tmp_path / "o.h5")
    assert (tmp_path / "o.h5").read_bytes() == b"precious"
    with pytest.raises(ConfigError):
        simulate_ct_scan(tmp_path / "ct.nii", tmp_path / "p.h5", slices=[9])
    assert not (tmp_path / "p.h5").exists()


def test_real_volumes(shared: Path) -> None:
    with open_scan(shared / "nifti" / "ct_chest_a_small.nii.gz", views=30) as scan:
        assert (len(scan), scan.header.image_shape) == (64, (78, 57))
        m = scan[32]
    assert any("mended" in w for w in m.warnings)
    with open_scan(shared / "nifti" / "ct_phantom_head.nii.gz", views=10) as scan:
        assert scan.header.text == "Axial CT slice of the head"


def test_an_offset_makes_stored_values_hounsfield_units(tmp_path: Path) -> None:
    hu = np.full((24, 24, 2), -1000, np.int16)
    hu[4:20, 4:20] = 40
    path = tmp_path / "stored.nii"
    nib.save(nib.Nifti1Image((hu + 1024).astype(np.uint16), np.diag([2.0, 2.0, 5.0, 1.0])), path)
    with open_scan(path, offset=-1024, views=20, photons=None) as scan:
        assert isinstance(scan, HounsfieldReader)
        mu = scan[0].target
        assert mu is not None
        assert float(mu.max()) == pytest.approx(MU_WATER * 1.04)
        assert any("-1024 added as told" in warning for warning in scan.header.warnings)

"""From a volume to k-space, to an image and back to a volume: the right way up, in the right place."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from treg_med.data import Geometry, Measurement, Reconstruction, VolumeWriter, open_scan, simulate_scan
from treg_med.data.orientation import slices_geometry, stored_affine, to_images, to_volume, unknown_geometry
from treg_med.data.phantoms import phantom_volume, write_fastmri, write_nifti, write_raw_kspace
from treg_med.errors import GeometryError
from treg_med.operators import centered_ifft2

VOLUME = phantom_volume((24, 20), 4)


def zero_filled(m: Measurement) -> Reconstruction:
    """Return the zero-filled image of complete data."""
    image = centered_ifft2(m.y)[0] if m.y.shape[0] == 1 else m.operator.adjoint(m.y)
    return Reconstruction(image, solver="zero-filled", measurement=m)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PSR", "SLA", "IPL"])
@pytest.mark.parametrize("through_file", [False, True])
def test_nifti_to_nifti(tmp_path: Path, axes: str, through_file: bool) -> None:
    affine = write_nifti(tmp_path / "a.nii.gz", VOLUME, axes=axes, sform_code=4, qform_code=1)
    options = {"acceleration": 1.0, "noise": 0.0, "coils": 2}
    path = (
        simulate_scan(tmp_path / "a.nii.gz", tmp_path / "a.h5", **options)
        if through_file
        else tmp_path / "a.nii.gz"
    )
    with (
        open_scan(path, **({} if through_file else options)) as scan,
        VolumeWriter(tmp_path, "out") as writer,
    ):
        for m in scan:
            writer.add(zero_filled(m))
    before, after = nib.load(tmp_path / "a.nii.gz"), nib.load(writer.image_path)
    assert after.shape == before.shape
    assert np.allclose(after.affine, affine, atol=1e-5)
    assert np.allclose(after.get_fdata(), before.get_fdata(), atol=1e-5)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert after.header[name] == before.header[name]
    assert np.allclose(after.header.get_zooms(), before.header.get_zooms(), atol=1e-5)
    assert np.allclose(after.get_qform(), affine, atol=1e-4)


def test_some_slices_only(tmp_path: Path) -> None:
    affine = write_nifti(tmp_path / "a.nii", VOLUME, axes="LPS")
    with (
        open_scan(tmp_path / "a.nii", acceleration=1.0, noise=0.0) as scan,
        VolumeWriter(tmp_path, "out") as writer,
    ):
        for i in (3, 1):
            writer.add(zero_filled(scan[i]))
    before, after = nib.load(tmp_path / "a.nii"), nib.load(writer.image_path)
    assert np.allclose(after.get_fdata(), before.get_fdata()[:, :, 1::2], atol=1e-5)
    expected = affine.copy()
    expected[:3, 3] = affine[:3] @ [0, 0, 1, 1]
    expected[:3, 2] *= 2
    assert np.allclose(after.affine, expected, atol=1e-5)


@pytest.mark.parametrize(("rot90", "flip"), [(r, f) for r in range(4) for f in (False, True)])
def test_a_volume_of_unknown_geometry_is_stored_upright(tmp_path: Path, rot90: int, flip: bool) -> None:
    write_raw_kspace(tmp_path / "a.h5", shape=(24, 20), n_slices=2)
    with (
        open_scan(tmp_path / "a.h5", rot90=rot90, flip=flip) as scan,
        VolumeWriter(tmp_path, "out") as writer,
    ):
        for m in scan:
            writer.add(zero_filled(m))
        shown = zero_filled(scan[1]).upright
        geometry = scan.geometry
    image = nib.load(writer.image_path)
    # Viewers draw the first axis to the right and the second one up.
    assert np.allclose(image.get_fdata()[:, ::-1, 1].T, shown.numpy(), atol=1e-6)
    assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)
    # With both codes 0 nibabel assumes an affine; ours is the same one.
    assert np.allclose(image.affine, stored_affine(geometry))
    assert '"unknown geometry"' in writer.sidecar_path.read_text()


def test_fastmri_is_stored_upright(tmp_path: Path) -> None:
    images = write_fastmri(tmp_path / "a.h5", coils=1)
    with open_scan(tmp_path / "a.h5") as scan, VolumeWriter(tmp_path, "out") as writer:
        for m in scan:
            writer.add(zero_filled(m))
    stored = nib.load(writer.image_path)
    # The raw images lie upside down, so that "up" is their last row.
    assert np.allclose(stored.get_fdata()[:, :, 0].T, images[0].numpy(), atol=1e-5)
    assert stored.header.get_zooms() == pytest.approx((1.0, 1.0, 4.5))


@pytest.mark.parametrize("rot90", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_display_and_back(rot90: int, flip: bool) -> None:
    image = torch.arange(24).reshape(2, 4, 3)
    geometry = unknown_geometry((4, 3, 1), display_rot90=rot90, display_flip=flip)
    assert torch.equal(geometry.from_display(geometry.to_display(image)), image)
    assert torch.equal(geometry.to_display(geometry.from_display(image.mT)), image.mT)


def test_volume_and_images_are_inverse() -> None:
    geometry = unknown_geometry((4, 3, 2), (1.0, 2.0, 5.0), display_rot90=1)
    images = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    volume, affine = to_volume(images, geometry)
    assert np.array_equal(to_images(volume, geometry), images)
    assert np.allclose(affine, stored_affine(geometry))


@pytest.mark.parametrize("indices", [[], [1, 0], [0, 1, 3], [0, 0], [-1, 0], [2, 4]])
def test_slices_that_no_affine_describes_are_refused(indices: list[int]) -> None:
    with pytest.raises(GeometryError, match="evenly spaced"):
        slices_geometry(Geometry(shape=(2, 2, 4)), indices)

"""NIfTI volumes: which way up, which slice, and every damaged or hostile header one typed error."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from treg_med.data import open_scan
from treg_med.data.nifti import NiftiVolume
from treg_med.data.phantoms import phantom_volume, write_nifti
from treg_med.errors import (
    ConfigError,
    FormatError,
    GeometryError,
    NumericsError,
    TregMedError,
    UnsafeFileError,
)

VOLUME = phantom_volume((24, 20), 4)
ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(("LR", "AP", "IS"))
    for letters in itertools.islice(itertools.product(*order), 0, None, 3)
]


def _save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine).to_filename(path)
    return path


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_slices_come_out_upright_from_any_storage(tmp_path: Path, axes: str) -> None:
    write_nifti(tmp_path / "a.nii", VOLUME, axes=axes)
    with open_scan(tmp_path / "a.nii", acceleration=1.0, noise=0.0) as scan:
        assert scan.header.image_shape == (24, 20)
        images = torch.stack([m.target.abs() for m in scan if m.target is not None])
        assert scan.geometry.spacing_mm == pytest.approx((1.1, 0.9, 3.0))
        assert scan.header.words.plane == "axial"
    # Slices keep the order of the file, images are always upright.
    assert torch.allclose(images if "S" in axes else images.flip(0), VOLUME, atol=1e-6)


def test_affine_puts_every_voxel_where_the_file_does(tmp_path: Path) -> None:
    affine = write_nifti(tmp_path / "a.nii", VOLUME, axes="PSL")
    stored = nib.load(tmp_path / "a.nii").get_fdata()
    with open_scan(tmp_path / "a.nii", acceleration=1.0, noise=0.0, slice_axis=0) as scan:
        image = scan[5].target
        assert image is not None
        assert scan.header.words.plane == "coronal"
        row, column = 1, 13
        world = scan.geometry.affine @ [row, column, 5, 1]
        voxel = np.rint(np.linalg.inv(affine) @ world)[:3].astype(int)
        assert float(image[row, column].abs()) == pytest.approx(stored[tuple(voxel)], abs=1e-6)
        assert voxel[0] == 5


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1.0, 1.0, 1.0), 2), ((1.0, 1.0, 3.0), 2), ((3.0, 1.0, 1.0), 0), ((1.0, 1.02, 1.0), 2)],
)
def test_the_default_slice_axis_is_the_coarsest(
    tmp_path: Path, spacing: tuple[float, float, float], axis: int
) -> None:
    write_nifti(tmp_path / "a.nii", VOLUME, spacing_mm=spacing)
    with open_scan(tmp_path / "a.nii", acceleration=1.0) as scan:
        assert scan.header.operations[0]["slice_axis"] == axis


def test_sagittal_slices_have_the_top_up_and_the_front_on_the_left(tmp_path: Path) -> None:
    values = np.zeros((6, 16, 12), np.float32)
    values[2, 14, 1] = 1.0  # front and low in RAS
    _save(tmp_path / "a.nii", values, np.diag([3.0, 1.0, 1.0, 1.0]))
    with open_scan(tmp_path / "a.nii", acceleration=1.0, noise=0.0) as scan:
        image = scan[2].target
        assert scan.header.words.plane == "sagittal"
    assert image is not None
    assert image.abs().argmax() == 10 * 16 + 1


def test_coronal_slices_have_the_top_up_and_the_left_on_the_right(tmp_path: Path) -> None:
    values = np.zeros((16, 6, 12), np.float32)
    values[14, 2, 1] = 1.0  # the patient's right, low, in RAS
    _save(tmp_path / "a.nii", values, np.diag([1.0, 3.0, 1.0, 1.0]))
    with open_scan(tmp_path / "a.nii", acceleration=1.0, noise=0.0) as scan:
        image = scan[2].target
        assert scan.header.words.plane == "coronal"
    assert image is not None
    assert image.abs().argmax() == 10 * 16 + 1


def test_every_output_says_that_it_is_simulated(tmp_path: Path) -> None:
    write_nifti(tmp_path / "brain_FLAIR.nii.gz", VOLUME)
    with open_scan(tmp_path / "brain_FLAIR.nii.gz", acceleration=2.0, coils=2, noise=0.02, seed=7) as scan:
        m = scan[1]
        assert "inverse crime" in repr(scan)
        assert "inverse crime" in scan._repr_html_()
        assert scan.header.text == "axial T2-FLAIR brain MRI"
    assert m.simulated
    assert "inverse crime" in m._repr_html_()
    operation = m.provenance["operations"][0]
    assert {"operation": "simulate", "seed": 7, "noise": 0.02, "coils": 2}.items() <= operation.items()
    assert operation["true_acceleration"] == m.operator.acceleration
    assert m.noise_std == pytest.approx(0.02 * float(VOLUME.max()))


def test_noise_and_mask_do_not_depend_on_other_slices(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", VOLUME)
    with (
        open_scan(tmp_path / "a.nii", seed=3) as a,
        open_scan(tmp_path / "a.nii", seed=3) as b,
        open_scan(tmp_path / "a.nii", seed=4) as c,
    ):
        assert torch.equal(a[2].y, b[-2].y)
        assert torch.equal(a[0].operator.mask, a[3].operator.mask)
        assert not torch.equal(a[2].y, c[2].y)
        noise = [m.y - m.operator(m.target) for m in a]
    overlap = torch.linalg.vecdot(noise[0].flatten(), noise[1].flatten()).abs()
    assert float(overlap) < 0.3 * float(torch.linalg.vector_norm(noise[0]) ** 2)


def test_four_dimensions_need_a_choice(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((8, 9, 10, 3)).astype(np.float32)
    _save(tmp_path / "a.nii.gz", values)
    with pytest.raises(ConfigError, match="volume=0..2"):
        open_scan(tmp_path / "a.nii.gz")
    with pytest.raises(ConfigError, match="volume=0..2"):
        open_scan(tmp_path / "a.nii.gz", volume=3)
    assert np.array_equal(NiftiVolume.read(tmp_path / "a.nii.gz", 1).values, values[..., 1])
    _save(tmp_path / "b.nii", values[..., :1])
    assert NiftiVolume.read(tmp_path / "b.nii").values.shape == (8, 9, 10)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64", ">i2", ">f4"])
def test_types_scaling_and_byte_order(tmp_path: Path, dtype: str) -> None:
    values = np.arange(60).reshape(3, 4, 5).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(np.dtype(dtype))
    image = nib.Nifti1Image(values, np.eye(4), header)
    image.header.set_slope_inter(0.5, 2.0)
    image.to_filename(tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").get_fdata()
    assert np.allclose(NiftiVolume.read(tmp_path / "a.nii").values, expected, atol=1e-5)


def test_lengths_in_metres_and_micrometres_become_mm(tmp_path: Path) -> None:
    for unit, factor in (("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)):
        image = nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
        image.header.set_xyzt_units(unit)
        image.to_filename(tmp_path / "a.nii")
        volume = NiftiVolume.read(tmp_path / "a.nii")
        assert volume.affine[0, 0] == pytest.approx(2.0 * factor)
        assert volume.xyzt_units & 7 == 2


def test_a_header_without_position_is_unknown_geometry(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", VOLUME, sform_code=0, qform_code=0)
    with open_scan(tmp_path / "a.nii") as scan:
        assert not scan.header.geometry_known
        assert any("unknown geometry" in w for w in scan.header.warnings)
        assert scan.header.words.plane is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_the_voxel(tmp_path: Path, bad: float) -> None:
    values = np.ones((5, 6, 7), np.float32)
    values[1, 2, 3] = bad
    with pytest.raises(NumericsError, match=r"1 NaN or Inf.*\(1, 2, 3\)"):
        open_scan(_save(tmp_path / "a.nii", values))


def test_what_is_no_magnitude_is_refused(tmp_path: Path) -> None:
    values = np.linspace(-np.pi, np.pi, 120).reshape(4, 5, 6).astype(np.float32)
    with pytest.raises(FormatError, match="phase"):
        open_scan(_save(tmp_path / "phase.nii", values))
    with pytest.raises(NumericsError, match="nothing to simulate"):
        open_scan(_save(tmp_path / "zero.nii", np.zeros((4, 5, 6), np.float32)))
    with pytest.raises(FormatError, match="real numbers"):
        open_scan(_save(tmp_path / "complex.nii", np.ones((4, 5, 6), np.complex64)))


def test_header_image_pairs_are_refused(tmp_path: Path) -> None:
    nib.Nifti1Pair(np.ones((4, 5, 6), np.float32), np.eye(4)).to_filename(tmp_path / "a.img")
    with pytest.raises(FormatError, match="pair"):
        open_scan(tmp_path / "a.hdr")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_one_typed_error(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"a{suffix}"
    write_nifti(path, VOLUME)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(FormatError):
        open_scan(path)


def _bomb(path: Path, shape: tuple[int, ...], filling: int) -> Path:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(filling), 9))
    return path


def test_gzip_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match="declares"):
        open_scan(_bomb(tmp_path / "a.nii.gz", (1024, 1024, 1024), 4 << 20))
    with pytest.raises(UnsafeFileError, match="declares"):
        open_scan(_bomb(tmp_path / "b.nii.gz", (30000, 30000, 3000), 1000))
    # A small promise with a large content: only what was promised is read.
    with pytest.raises(NumericsError, match="nothing to simulate"):
        open_scan(_bomb(tmp_path / "c.nii.gz", (8, 8, 8), 8 << 20))


def test_a_lying_offset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, VOLUME)
    data = bytearray(path.read_bytes())
    data[108:112] = struct.pack("<f", 2e9)
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError):
        open_scan(path)


def test_damaged_headers_are_typed_errors_or_valid_volumes(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, VOLUME)
    clean = path.read_bytes()
    generator = np.random.default_rng(5)
    refused = 0
    for _ in range(400):
        data = bytearray(clean)
        for position in generator.integers(0, 348, 6):
            data[position] = generator.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            with open_scan(path, acceleration=1.0) as scan:
                assert min(scan.geometry.shape) >= 1
                assert np.isfinite(scan.geometry.affine).all()
                assert abs(np.linalg.det(scan.geometry.affine[:3, :3])) > 0
        except TregMedError:
            refused += 1
    assert 0 < refused < 400


def test_degenerate_affines_are_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    image.header["srow_x"] = 0
    image.header["sform_code"] = 1
    path = tmp_path / "a.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + np.ones(120, np.float32).tobytes())
    with pytest.raises(GeometryError, match="invertible"):
        open_scan(path)


def test_no_header_text_leaves_the_file(tmp_path: Path) -> None:
    canary = "CANARY^JANE"
    fields = {"descrip": canary, "aux_file": canary, "intent_name": canary[:15], "db_name": canary}
    write_nifti(tmp_path / f"{canary}.nii", VOLUME, header=fields)
    with open_scan(tmp_path / f"{canary}.nii") as scan:
        kept = json.dumps([dict(scan[0].provenance), scan.header.as_dict()]) + repr(scan) + scan._repr_html_()
    assert "CANARY" not in kept
    assert "JANE" not in kept


@pytest.mark.parametrize(
    "options",
    [
        {"acceleration": 0.5}, {"acceleration": float("nan")}, {"mask": "spiral"}, {"coils": 0},
        {"coils": 1.5}, {"noise": -1.0}, {"seed": "x"}, {"phase": "wild"}, {"slice_axis": 3},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    write_nifti(tmp_path / "a.nii", VOLUME)
    with pytest.raises(ConfigError):
        open_scan(tmp_path / "a.nii", **options)


def test_real_volumes(shared: Path) -> None:
    with open_scan(shared / "nifti" / "breast_a_mr.nii.gz", acceleration=2.0) as scan:
        assert (len(scan), scan.header.image_shape) == (21, (120, 45))
        assert scan[10].target is not None

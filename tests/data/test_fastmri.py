"""The fastMRI layout: crop, padding, masks, targets, words, and an XML header that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from treg_med.data import open_scan
from treg_med.data.fastmri import EncodingHeader, crop_readout, parse_encoding_header
from treg_med.data.phantoms import write_fastmri
from treg_med.errors import FormatError, GeometryError, NumericsError, UnsafeFileError
from treg_med.operators import centered_fft2, centered_ifft2


@pytest.mark.parametrize(("height", "length"), [(16, 8), (17, 8), (16, 7), (15, 9), (8, 8)])
def test_the_crop_commutes_with_the_operator(height: int, length: int) -> None:
    image = torch.randn(2, height, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    first = height // 2 - length // 2
    expected = centered_fft2(image[:, first : first + length])
    assert torch.allclose(crop_readout(centered_fft2(image), length), expected, atol=1e-12)


def test_the_crop_keeps_masks_over_columns_and_white_noise() -> None:
    noise = torch.randn(200, 64, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    noise[..., ::3] = 0
    cropped = crop_readout(noise, 32)
    assert not cropped[..., ::3].abs().max() > 0
    kept = cropped[..., 1::3]
    assert float(kept.abs().square().mean()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("coils", [1, 3])
def test_the_image_is_the_cropped_one(tmp_path: Path, coils: int) -> None:
    images = write_fastmri(tmp_path / "a.h5", coils=coils)
    with open_scan(tmp_path / "a.h5") as scan:
        m = scan[1]
        assert scan.header.image_shape == (40, 44)
    rss = torch.linalg.vector_norm(centered_ifft2(m.y), dim=0)
    assert torch.allclose(rss, images[1], atol=1e-5)
    assert m.target is not None
    assert torch.allclose(m.target.abs(), images[1], atol=1e-5)
    assert not any("not the centre" in w for w in m.warnings)


def test_padding_columns_are_not_counted_as_sampled(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", padding=(4, 6))
    with open_scan(tmp_path / "a.h5") as scan:
        mask = scan[0].operator.mask
    assert not mask[:, :4].any()
    assert not mask[:, -6:].any()
    assert mask[:, 4:-6].all()
    assert scan.header.acceleration == pytest.approx(44 / 34)


def test_a_test_mask_is_used_inside_the_acquired_columns(tmp_path: Path) -> None:
    mask = np.arange(44) % 4 == 0
    write_fastmri(tmp_path / "a.h5", padding=(2, 3), mask=mask)
    with open_scan(tmp_path / "a.h5") as scan:
        m = scan[0]
    expected = mask.copy()
    expected[:2] = expected[-3:] = False
    assert np.array_equal(m.operator.mask[0].numpy(), expected)
    assert m.target is None
    assert m.provenance["mask_source"] == "from the file"


def test_a_mask_attribute_is_used_too(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["mask"] = (np.arange(44) % 2).astype(np.uint8)
    with open_scan(tmp_path / "a.h5") as scan:
        assert scan.header.acceleration == pytest.approx(44 / 19)
        assert any("does not cover" in w for w in scan[0].warnings)


def test_a_target_of_the_right_shape_is_taken_from_the_file(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", recon=40, width=40, padding=(0, 0), coils=2)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["reconstruction_rss"][...] = 7
    with open_scan(tmp_path / "a.h5") as scan:
        m = scan[0]
    assert m.target is not None
    assert (m.target == 7).all()
    assert m.provenance["target"] == "reconstruction_rss"


def test_a_target_of_another_scan_is_noticed(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", coils=2)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["reconstruction_rss"][...] = 7
    with open_scan(tmp_path / "a.h5") as scan:
        assert any("not the centre" in w for w in scan[0].warnings)


def test_retrospective_undersampling_stays_inside_the_acquired_columns(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", coils=1, padding=(3, 3))
    with open_scan(tmp_path / "a.h5", acceleration=3.0, mask="random", seed=4) as scan:
        m = scan[0]
    assert not m.operator.mask[:, :3].any()
    assert m.operator.acceleration > 2.5
    assert m.target is not None
    assert m.provenance["operations"][0]["seed"] == 4


@pytest.mark.parametrize(
    ("acquisition", "text"),
    [
        ("AXT1", "axial T1-weighted brain MRI"),
        ("AXT1POST", "axial contrast-enhanced T1-weighted brain MRI"),
        ("AXT1PRE", "axial T1-weighted brain MRI"),
        ("AXT2", "axial T2-weighted brain MRI"),
        ("AXFLAIR", "axial T2-FLAIR brain MRI"),
        ("CORPD_FBK", "coronal proton-density-weighted knee MRI"),
        ("CORPDFS_FBK", "coronal fat-suppressed proton-density-weighted knee MRI"),
        ("JOHN DOE 1970", None),
    ],
)
def test_the_acquisition_becomes_a_text(tmp_path: Path, acquisition: str, text: str | None) -> None:
    write_fastmri(tmp_path / "a.h5", acquisition=acquisition, n_slices=1)
    with open_scan(tmp_path / "a.h5") as scan:
        assert scan.header.text == text


def test_voxel_sizes_and_display(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5")
    with open_scan(tmp_path / "a.h5") as scan:
        geometry = scan.geometry
        m = scan[0]
    assert geometry.spacing_mm == pytest.approx((1.0, 1.0, 4.5))
    assert not geometry.known
    assert m.target is not None
    # The phantom's larger dark ventricle lies in front, on the left of an upright image.
    assert torch.equal(geometry.to_display(m.target), m.target.flip(0))


def test_no_name_of_a_patient_leaves_the_file(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", patient_name="CANARY^JANE")
    with open_scan(tmp_path / "a.h5") as scan:
        kept = json.dumps([dict(scan[0].provenance), scan.header.as_dict()]) + repr(scan) + scan._repr_html_()
    assert "CANARY" not in kept
    assert "0123456789abcdef" not in kept


def test_nan_is_refused_with_its_index(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", coils=2)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["kspace"][1, 1, 5, 6] = np.nan
    with open_scan(tmp_path / "a.h5") as scan, pytest.raises(NumericsError, match=r"\(1, 5, 6\)"):
        scan[1]


_GOOD = "<encoding>{}</encoding>"
_SPACE = "<{0}><matrixSize><x>{1}</x><y>4</y><z>1</z></matrixSize></{0}>"


def test_a_header_without_limits_or_namespace() -> None:
    xml = f"<h>{_GOOD.format(_SPACE.format('encodedSpace', 8) + _SPACE.format('reconSpace', 4))}</h>"
    header = parse_encoding_header(xml)
    assert (header.encoded[0], header.recon[0], header.center) == (8, 4, None)
    assert header.acquired_columns(10) == (0, 10)


def test_padding_formula() -> None:
    header = EncodingHeader((640, 368, 1), (320, 320, 1), (1, 1, 1), (1, 1, 1), center=184, maximum=367)
    assert header.acquired_columns(368) == (0, 368)
    header = EncodingHeader((640, 368, 1), (320, 320, 1), (1, 1, 1), (1, 1, 1), center=160, maximum=320)
    assert header.acquired_columns(372) == (26, 347)


@pytest.mark.parametrize(
    ("xml", "error"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', UnsafeFileError),
        ('<!doctype a SYSTEM "file:///etc/passwd"><a/>', UnsafeFileError),
        ("<a>" + " " * (1 << 21) + "</a>", UnsafeFileError),
        ("<a", FormatError),
        ("", FormatError),
        (b"\xff\xfe\x00<a/>", UnsafeFileError),
        ("<a>&x;</a>", FormatError),
        ("<a/>", FormatError),
        (f"<h>{_GOOD.format(_SPACE.format('encodedSpace', 'many'))}</h>", FormatError),
        (f"<h>{_GOOD.format(_SPACE.format('encodedSpace', -3))}</h>", FormatError),
    ],
)
def test_a_bad_header_is_one_typed_error(xml: str | bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_encoding_header(xml)


def test_a_header_that_leaves_no_columns_is_refused(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        xml = file["ismrmrd_header"][()].replace(b"<center>20</center>", b"<center>900</center>")
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = xml
    with pytest.raises(GeometryError, match="padding"):
        open_scan(tmp_path / "a.h5")


def test_a_header_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = np.ones(3)
    with pytest.raises(FormatError, match="XML"):
        open_scan(tmp_path / "a.h5")

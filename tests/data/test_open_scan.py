"""Which reader opens what, and one typed error for everything else."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.data.ct_files import write_exchange, write_hounsfield, write_htc, write_sinogram
from treg_med.data import open_scan
from treg_med.data.phantoms import phantom_volume, write_fastmri, write_nifti, write_raw_kspace
from treg_med.errors import ConfigError, FormatError, ResourceError


def test_content_decides_not_the_extension(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "raw.h5")
    write_fastmri(tmp_path / "file.h5")
    write_nifti(tmp_path / "one.nii", phantom_volume())
    write_nifti(tmp_path / "two.nii.gz", phantom_volume(), version=2)
    write_sinogram(tmp_path / "sino.h5")
    write_exchange(tmp_path / "exchange.h5")
    write_htc(tmp_path / "htc.h5")
    write_hounsfield(tmp_path / "ct.nii.gz")
    for name, disguise, kind in [
        ("sino.h5", "sino.nii", "CT sinogram HDF5"),
        ("exchange.h5", "exchange", "Data Exchange HDF5"),
        ("htc.h5", "htc.hdf5", "HTC2022 fan-beam HDF5"),
        ("ct.nii.gz", "ct.h5", "NIfTI CT (Hounsfield units)"),
        ("raw.h5", "raw.nii.gz", "raw k-space HDF5"),
        ("file.h5", "file.dcm", "fastMRI HDF5"),
        ("one.nii", "one.h5", "NIfTI magnitude"),
        ("two.nii.gz", "two", "NIfTI magnitude"),
    ]:
        shutil.copy(tmp_path / name, tmp_path / disguise)
        with open_scan(tmp_path / disguise) as scan:
            assert scan.header.format == kind


def test_hdf5_behind_a_user_block_is_recognised(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file["kspace"] = np.ones((16, 16), np.complex64)
    with open_scan(str(tmp_path / "a.h5")) as scan:
        assert scan.header.image_shape == (16, 16)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="existing file"):
        open_scan(tmp_path / "missing.h5")
    with pytest.raises(ResourceError, match="folder"):
        open_scan(tmp_path)
    with pytest.raises(ResourceError):
        open_scan("a\0b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"hello", "something else"),
        (b"\0" * 128 + b"DICM" + b"\0" * 100, "dcm2niix"),
        (b"PK\x03\x04" + b"\0" * 100, "zip"),
        (b"\x93NUMPY" + b"\0" * 100, "numpy"),
        (b"\x89PNG\r\n" + b"\0" * 100, "picture"),
        (gzip.compress(b"no nifti" * 100, mtime=0), "gzip"),
        (b"\x1f\x8b broken gzip", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(4000), "damaged"),
    ],
)
def test_a_wrong_format_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "scan.h5").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        open_scan(tmp_path / "scan.h5")


def test_hdf5_without_kspace_names_what_it_has(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["sinogram"] = np.ones(3)
    with pytest.raises(FormatError, match="sinogram"):
        open_scan(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_group("dataset")
    with pytest.raises(FormatError, match="ISMRMRD"):
        open_scan(tmp_path / "b.h5")


def test_an_unknown_option_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5")
    with pytest.raises(ConfigError, match="coils.*acceleration"):
        open_scan(tmp_path / "a.h5", coils=4)

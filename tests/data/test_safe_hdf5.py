"""Crafted HDF5 files that would read other files or exhaust the memory; none may be opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from treg_med.data import open_scan
from treg_med.data.phantoms import write_raw_kspace
from treg_med.data.safe_hdf5 import check_fits_memory, open_hdf5
from treg_med.errors import FormatError, ResourceError, UnsafeFileError


def _other(folder: Path) -> Path:
    with h5py.File(folder / "other.h5", "w") as file:
        file["secret"] = np.ones((2, 8, 8), np.complex64)
        file.create_group("inner")["secret"] = np.ones((2, 8, 8), np.complex64)
    return folder / "other.h5"


def _external_link(file: h5py.File, folder: Path) -> None:
    file["kspace"] = h5py.ExternalLink(str(_other(folder)), "/secret")


def _soft_link(file: h5py.File, folder: Path) -> None:
    file["real"] = np.ones((8, 8), np.complex64)
    file["kspace"] = h5py.SoftLink("/real")


def _dangling_soft_link(file: h5py.File, folder: Path) -> None:
    file["kspace"] = np.ones((8, 8), np.complex64)
    file["mask"] = h5py.SoftLink("/nowhere")


def _nested_external_link(file: h5py.File, folder: Path) -> None:
    file["kspace"] = np.ones((8, 8), np.complex64)
    file.create_group("a/b/c")["link"] = h5py.ExternalLink(str(_other(folder)), "/secret")


def _nested_soft_link(file: h5py.File, folder: Path) -> None:
    file["kspace"] = np.ones((8, 8), np.complex64)
    file.create_group("a/b")["link"] = h5py.SoftLink("/kspace")


def _external_group(file: h5py.File, folder: Path) -> None:
    # The last part of the path "group/secret" looks like an ordinary dataset; the group is elsewhere.
    file["kspace"] = np.ones((8, 8), np.complex64)
    file["group"] = h5py.ExternalLink(str(_other(folder)), "/inner")


def _external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "secret.txt").write_bytes(b"x" * 512)
    file.create_dataset("kspace", (8, 8), "complex64", external=[(str(folder / "secret.txt"), 0, 512)])


def _nested_external_storage(file: h5py.File, folder: Path) -> None:
    file["kspace"] = np.ones((8, 8), np.complex64)
    (folder / "secret.txt").write_bytes(b"x" * 512)
    file.create_group("deep").create_dataset(
        "d", (64,), "f8", external=[(str(folder / "secret.txt"), 0, 512)]
    )


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((2, 8, 8), "complex64")
    layout[:] = h5py.VirtualSource(str(_other(folder)), "secret", (2, 8, 8))
    file.create_virtual_dataset("kspace", layout)


def _nested_virtual(file: h5py.File, folder: Path) -> None:
    file["kspace"] = np.ones((8, 8), np.complex64)
    layout = h5py.VirtualLayout((2, 8, 8), "complex64")
    layout[:] = h5py.VirtualSource(str(_other(folder)), "secret", (2, 8, 8))
    file.create_group("g").create_virtual_dataset("v", layout)


def _shape_bomb(file: h5py.File, folder: Path) -> None:
    file.create_dataset("kspace", (4000, 16, 1000, 1000), "complex64", chunks=(1, 1, 64, 64))


def _mask_bomb(file: h5py.File, folder: Path) -> None:
    file["kspace"] = np.ones((8, 8), np.complex64)
    file.create_dataset("mask", (1 << 20, 1 << 14), "u1", chunks=(64, 64), compression="gzip")


CRAFTED: list[Callable[[h5py.File, Path], None]] = [
    _external_link, _soft_link, _dangling_soft_link, _nested_external_link, _nested_soft_link,
    _external_group,
    _external_storage, _nested_external_storage, _virtual, _nested_virtual, _shape_bomb, _mask_bomb,
]  # fmt: skip


@pytest.mark.parametrize("craft", CRAFTED, ids=lambda f: f.__name__.strip("_"))
def test_a_crafted_file_is_refused(craft: Callable[[h5py.File, Path], None], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "crafted.h5", "w") as file:
        craft(file, tmp_path)
    with pytest.raises(UnsafeFileError):
        open_scan(tmp_path / "crafted.h5")


def test_hard_links_and_cycles_are_fine(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        group = file.create_group("again")
        group["kspace"] = file["kspace"]
        group["self"] = group
        group["root"] = file["/"]
    with open_scan(tmp_path / "a.h5") as scan:
        assert len(scan) == 2


def test_too_many_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treg_med.data.safe_hdf5._MOST_OBJECTS", 20)
    write_raw_kspace(tmp_path / "a.h5", datasets={f"d{i}": np.zeros(1) for i in range(30)})
    with pytest.raises(UnsafeFileError, match="objects"):
        open_scan(tmp_path / "a.h5")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_one_typed_error(tmp_path: Path, part: float) -> None:
    write_raw_kspace(tmp_path / "a.h5", coils=2, noise=0.1)
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: int(part * len(data))])
    with pytest.raises(FormatError, match="a.h5"):
        open_scan(tmp_path / "a.h5")[0]


def test_a_damaged_chunk_is_one_typed_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        values = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.complex64)
        file.create_dataset("kspace", data=values, chunks=(1, 1, 32, 32), compression="gzip", fletcher32=True)
        offset = file["kspace"].id.get_chunk_info(0).byte_offset
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[offset + 40 : offset + 60] = bytes(20)
    (tmp_path / "a.h5").write_bytes(bytes(data))
    with open_scan(tmp_path / "a.h5") as scan, pytest.raises(FormatError, match="damaged"):
        scan[0]


def test_the_input_is_never_touched(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", noise=0.01)
    before = (
        hashlib.sha256((tmp_path / "a.h5").read_bytes()).digest(),
        (tmp_path / "a.h5").stat().st_mtime_ns,
    )
    with open_scan(tmp_path / "a.h5") as scan:
        assert scan[1].y.abs().max() > 0
    with open_hdf5(tmp_path / "a.h5") as file, pytest.raises((OSError, ValueError)):
        file.create_dataset("new", data=1)
    assert before == (
        hashlib.sha256((tmp_path / "a.h5").read_bytes()).digest(),
        (tmp_path / "a.h5").stat().st_mtime_ns,
    )


def test_what_does_not_fit_the_memory_is_refused() -> None:
    with pytest.raises(ResourceError, match="GiB"):
        check_fits_memory("a scan", 10**12)

"""All readers through the battery, and the battery against readers that break it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conformance.sources import (
    SOURCE_CASES,
    SourceConformance,
    _digest_of,
    fork_digest,
    pytest_source_cases,
)
from treg_med.data import Measurement, SliceSource, open_scan, register_reader, validate_source
from treg_med.data.generic_hdf5 import RawKspaceReader
from treg_med.data.phantoms import write_raw_kspace
from treg_med.errors import FormatError, ResourceError


@pytest_source_cases(SOURCE_CASES)
class TestSources(SourceConformance):
    pass


class _Broken(RawKspaceReader):
    fault = ""

    def _measure(self, index: int) -> Measurement:
        m = super()._measure(index)
        if self.fault == "negative zeros":
            return replace(m, y=torch.where(m.operator.mask, m.y, torch.tensor(complex(-0.0, -0.0))))
        if self.fault == "scale":
            return replace(m, scale=m.scale * 1000)
        if self.fault == "provenance":
            return replace(m, provenance={"simulated": True})
        if self.fault == "double":
            return replace(m, y=m.y.to(torch.complex128))
        if self.fault == "geometry":
            return replace(m, geometry=None)
        if self.fault == "not JSON":
            return replace(m, provenance={**m.provenance, "mask": m.operator.mask})
        return m

    def __len__(self) -> int:
        return super().__len__() + (self.fault == "length")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("negative zeros", r"exactly \+0"),
        ("scale", "maximum to about 1"),
        ("provenance", "provenance is complete"),
        ("double", "single precision"),
        ("geometry", "geometry is present"),
        ("not JSON", "plain JSON"),
        ("length", "counts the slices"),
    ],
)
def test_the_battery_catches_a_broken_reader(
    tmp_path: Path, fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw_kspace(tmp_path / "a.h5", acceleration=2.0, noise=0.01)
    monkeypatch.setattr(_Broken, "fault", fault)
    with _Broken(tmp_path / "a.h5") as source, pytest.raises(FormatError, match=message):
        validate_source(source)


def test_the_battery_passes_the_same_reader_without_a_fault(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", acceleration=2.0, noise=0.01)
    with _Broken(tmp_path / "a.h5") as source:
        assert isinstance(source, SliceSource)
        assert validate_source(source)


def test_the_battery_refuses_what_is_no_source() -> None:
    with pytest.raises(FormatError, match="SliceSource"):
        validate_source([1, 2])  # type: ignore[arg-type]


def test_a_slice_is_read_once_and_kept_for_a_while(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", coils=2, noise=0.01)
    with open_scan(tmp_path / "a.h5") as source:
        assert source[0] is source[0]
        assert source[0] is source[-2]


def test_a_closed_source_says_so(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5")
    with open_scan(tmp_path / "a.h5") as source:
        pass
    with pytest.raises(ResourceError, match="closed"):
        source[0]


def test_a_forked_worker_reads_the_same(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", noise=0.01)
    with open_scan(tmp_path / "a.h5") as source:
        assert fork_digest(source) == _digest_of(source)


def test_header_reads_like_a_dictionary(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", coils=2)
    with open_scan(tmp_path / "a.h5") as source:
        header = source.header
    assert header["coils"] == header.coils == dict(header)["coils"] == 2
    with pytest.raises(KeyError):
        header["patient"]


def test_a_registered_reader_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package exports the function under the name of its module.
    module = sys.modules["treg_med.data.scan_formats"]
    monkeypatch.setattr(module, "_READERS", list(module._READERS))
    register_reader(lambda content: content.keys is not None and "kspace" in content.keys, _Broken)
    write_raw_kspace(tmp_path / "a.h5")
    assert isinstance(open_scan(tmp_path / "a.h5"), _Broken)

"""The tidy table: what is written is read again, and it is there as a whole or not at all."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from treg_med.errors import ConfigError, ResourceError
from treg_med.evaluation.table import COLUMNS, TableWriter, read_rows


def row(number: int, **others: Any) -> dict[str, Any]:
    return {
        "dataset": "brain",
        "subject": f"{number:02d}",
        "method": "tv",
        "control": False,
        "arm": "none",
        "seed": 0,
        "protocol": "fastmri",
        "protocol_version": 1,
        "level": "volume",
        "psnr": number / 3,
        **others,
    }


def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    rows = [row(1, text='axial "T1", brain\nMRI', note=None), row(2, psnr=math.nan, slice=3, control=True)]
    with TableWriter(tmp_path) as table:
        for each in rows:
            table.add(each)
    assert table.count == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.csv", "metrics.parquet"]
    read = list(read_rows(tmp_path / "metrics.parquet"))
    assert list(read[0]) == list(COLUMNS)
    assert read[0]["psnr"] == 1 / 3
    assert read[0]["text"] == rows[0]["text"]
    assert read[0]["slice"] is None
    assert math.isnan(read[1]["psnr"])
    assert read[1]["ssim"] is None
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        written = list(csv.DictReader(stream))
    assert written[0]["text"] == rows[0]["text"]
    assert float(written[0]["psnr"]) == 1 / 3  # every digit
    assert written[1]["psnr"] == "nan"
    assert (written[0]["ssim"], written[0]["slice"], written[1]["slice"]) == ("", "", "3")
    assert (written[0]["control"], written[1]["control"]) == ("false", "true")


def test_rows_are_written_in_groups(tmp_path: Path) -> None:
    with TableWriter(tmp_path) as table:
        for number in range(10_000):
            table.add(row(number))
            assert len(table._rows) < 4096
    file = pq.ParquetFile(tmp_path / "metrics.parquet")
    assert file.metadata.num_row_groups == 3
    assert [r["subject"] for r in read_rows(tmp_path / "metrics.parquet")] == [f"{n:02d}" for n in range(10_000)]


def test_an_error_leaves_the_old_table(tmp_path: Path) -> None:
    with TableWriter(tmp_path) as table:
        table.add(row(1))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), TableWriter(tmp_path) as table:
        table.add(row(2))
        raise RuntimeError
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with TableWriter(tmp_path / name) as table:
            table.add(row(1))
    for name in ("metrics.csv", "metrics.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_cannot_be_written_or_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got fancy"), TableWriter(tmp_path) as table:
        table.add(row(1, fancy=1.0))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ResourceError, match="choose another"), TableWriter(tmp_path / "missing"):
        pass
    with pytest.raises(ResourceError, match="evaluate again"):
        list(read_rows(tmp_path / "metrics.parquet"))
    (tmp_path / "metrics.parquet").write_bytes(b"no table")
    with pytest.raises(ResourceError, match="evaluate again"):
        list(read_rows(tmp_path / "metrics.parquet"))


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    with TableWriter(tmp_path):
        pass
    assert list(read_rows(tmp_path / "metrics.parquet")) == []
    assert (tmp_path / "metrics.csv").read_text().startswith("dataset,subject,")

"""The tidy table: one row for a volume or a slice under one protocol, as CSV and as Parquet of one fixed schema."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from treg_med.data.atomic import StagedFiles, writing
from treg_med.errors import ConfigError, ResourceError

__all__ = ["COLUMNS", "METRICS", "TableWriter", "read_rows"]

#: Every metric of every protocol has its column, so that tables of different evaluations can be put together.
METRICS = (
    "psnr", "ssim", "nmse", "ms_ssim", "haarpsi", "rmse_hu", "rmse_hu_soft", "mae_hu", "psnr_fr", "ssim_fr",
    "ssim_unit_range", "psnr_roi", "ssim_roi", "nmse_roi", "error_ratio", "cnr", "cnr_target", "lesion_contrast",
)  # fmt: skip

_TEXT, _INTEGER, _NUMBER, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_FACTS = {
    "dataset": _TEXT,
    "subject": _TEXT,
    "session": _TEXT,
    "scan": _TEXT,
    "scenario": _TEXT,
    "method": _TEXT,
    "solver": _TEXT,
    "preset": _TEXT,
    "control": _FLAG,
    "arm": _TEXT,
    "text": _TEXT,
    "seed": _INTEGER,
    "protocol": _TEXT,
    "protocol_version": _INTEGER,
    "level": _TEXT,
    "slice": _INTEGER,
    "data_range": _NUMBER,
    "crop": _TEXT,
    "mask": _TEXT,
    "nan_pixels": _INTEGER,
    "run_hash": _TEXT,
    "note": _TEXT,
    "residual": _NUMBER,
}
_SCHEMA = pa.schema([*_FACTS.items(), *((name, _NUMBER) for name in METRICS)])
#: Columns in their order.
COLUMNS: tuple[str, ...] = tuple(_SCHEMA.names)

_ROWS_PER_GROUP = 4096


class TableWriter:
    """Writes ``metrics.csv`` and ``metrics.parquet`` row by row; both appear together when the block ends well.

    No more than one row group is kept in memory.

    Parameters
    ----------
    folder
        Existing folder; tables in it are replaced.

    Raises
    ------
    ConfigError
        From `add`, for a column that the schema does not have.
    ResourceError
        If the disk is full or the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged = StagedFiles(overwrite=True)
        self._rows: list[Mapping[str, Any]] = []
        self.count = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; columns that it does not have are empty."""
        unknown = sorted(row.keys() - set(COLUMNS))
        if unknown:
            raise ConfigError(f"expected columns among {', '.join(COLUMNS)}; got {', '.join(unknown)}")
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        with writing("writing the table"):
            for row in rows:
                self._csv.writerow([_cell(row.get(name)) for name in COLUMNS])
            self._parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=_SCHEMA))

    def __enter__(self) -> Self:
        """Open both files beside their places."""
        try:
            plain, packed = (self._staged.path(self._folder / f"metrics.{end}") for end in ("csv", "parquet"))
            self._stream: TextIO = plain.open("w", newline="", encoding="utf-8")
            self._parquet = pq.ParquetWriter(packed, _SCHEMA)
        except OSError as error:
            self._staged.discard()
            if isinstance(error, ResourceError):
                raise
            raise ResourceError(
                f"expected a folder to write to, got {str(self._folder)!r} ({error.strerror or error}); choose another"
            ) from error
        self._csv = csv.writer(self._stream, lineterminator="\n")
        self._csv.writerow(COLUMNS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the files in their places on success, remove them otherwise."""
        with self._staged:
            try:
                if kind is None and self._rows:
                    self._flush()
            finally:
                self._stream.close()
                self._parquet.close()
            if kind is None:
                self._staged.commit()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(float(value)) if isinstance(value, float) and math.isfinite(value) else str(value)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Give the rows of a ``metrics.parquet`` one after the other.

    Raises
    ------
    ResourceError
        If it is not there or not such a table.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_PER_GROUP):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise ResourceError(f"expected a table of metrics, got {path.name!r}: {error}; evaluate again") from error

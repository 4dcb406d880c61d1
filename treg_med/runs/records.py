"""The finished slices of unfinished volumes, one file each."""

from __future__ import annotations

import shutil
from pathlib import Path

from treg_med.data.slice_record import SliceRecord
from treg_med.errors import FormatError, ResourceError

__all__ = ["RecordStore"]


class RecordStore:
    """Slices of one method on one scan.

    Parameters
    ----------
    folder
        Folder of the records; its name holds the hash of the work, so that a record cannot be taken for another's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> Path:
        """Make the folder and return it.

        Raises
        ------
        ResourceError
            If that fails.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"keeping slices failed: {error}; choose another output folder") from error
        return self.folder

    def path(self, index: int) -> Path:
        """File of a slice."""
        return self.folder / f"{index:05d}.safetensors"

    def put(self, record: SliceRecord) -> None:
        """Keep a slice.

        Raises
        ------
        ResourceError
            If it cannot be written.
        """
        self.make()
        record.save(self.path(record.index))

    def has(self, index: int) -> bool:
        """Whether a slice is there, whole; a damaged record is removed."""
        path = self.path(index)
        if not path.exists():
            return False
        try:
            SliceRecord.load(path)
        except FormatError:
            path.unlink(missing_ok=True)
            return False
        return True

    def get(self, index: int) -> SliceRecord:
        """Read a slice.

        Raises
        ------
        FormatError
            If it is not there or damaged.
        """
        return SliceRecord.load(self.path(index))

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

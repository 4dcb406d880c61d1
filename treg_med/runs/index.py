"""``index.jsonl``: one line for every output and every failure, with what differs from run to run.

The sidecars are the truth; the index is a list of them that can be read in one go. Lines are appended under a lock. A
process that is killed while it appends leaves the beginning of a line, which is dropped: it was never an entry. Lines
that are damaged in another way are set aside and nothing else is lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from treg_med.data.atomic import writing
from treg_med.data.plain import plain
from treg_med.errors import ResourceError
from treg_med.runs.tree import OutputTree

__all__ = ["RunIndex"]

# How every line of ours begins; what is cut off is told from somebody's damage by it.
_BEGINNING = b'{"finished": "'
_BLOCK = 1 << 12


class RunIndex:
    """The index of an output tree.

    Parameters
    ----------
    tree
        The tree.
    """

    def __init__(self, tree: OutputTree) -> None:
        self.path = tree.root / "index.jsonl"
        self._tree = tree

    def append(self, facts: Mapping[str, Any]) -> None:
        """Add one line.

        Raises
        ------
        ResourceError
            If it cannot be written.
        """
        entry = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), **plain(dict(facts))}
        # The name of a file need not be text: what has no UTF-8 is escaped, in the manner of JSON.
        line = (json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._tree.alone(), writing(f"writing {self.path.name!r}"), self.path.open("ab") as file:
            # What does not end its line and stays must not swallow this one.
            if self._drop_cut_off():
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """Return the entries and the number of lines that are none.

        Raises
        ------
        ResourceError
            If it cannot be read.
        """
        entries = [_entry(line) for line in self._lines()]
        good = [entry for entry in entries if entry is not None]
        return good, len(entries) - len(good)

    def run_hashes(self) -> set[str]:
        """Return the hashes of the outputs that are listed."""
        return {str(entry["run_hash"]) for entry in self.read()[0] if "run_hash" in entry}

    def _lines(self) -> list[bytes]:
        try:
            return [line for line in self.path.read_bytes().split(b"\n") if line.strip()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResourceError(f"reading {self.path.name!r} failed: {error}") from error

    def repair(self) -> int:
        """Move damaged lines to ``index.damaged``; return how many there were.

        Raises
        ------
        ResourceError
            If that cannot be written.
        """
        with writing(f"repairing {self.path.name!r}"), self._tree.alone() as staged:
            self._drop_cut_off()
            lines = self._lines()
            good = [line for line in lines if _entry(line) is not None]
            damaged = [line for line in lines if _entry(line) is None]
            if damaged:
                aside = self.path.with_suffix(".damaged")
                before = aside.read_bytes() if aside.exists() else b""
                staged.path(aside).write_bytes(before + _joined(damaged))
                staged.path(self.path).write_bytes(_joined(good))
                staged.commit()
        return len(damaged)

    def _tail(self) -> bytes:
        """Return what follows the last end of a line."""
        if not self.path.exists():
            return b""
        with self.path.open("rb") as file:
            size, read = file.seek(0, os.SEEK_END), 0
            tail = b""
            while read < size and b"\n" not in tail:
                read = min(size, max(_BLOCK, 2 * read))
                file.seek(size - read)
                tail = file.read()
        return tail.rpartition(b"\n")[2]

    def _drop_cut_off(self) -> bytes:
        """Remove the beginning of a line of ours at the end; return what else is there without an end."""
        tail = self._tail()
        ours = tail.startswith(_BEGINNING) or _BEGINNING.startswith(tail)
        if tail and ours and _entry(tail) is None:
            os.truncate(self.path, self.path.stat().st_size - len(tail))
            return b""
        return tail


def _joined(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")

"""One writer at a time: an exclusive lock on a file, given up by the system when its process ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from treg_med.errors import ResourceError

__all__ = ["OutputLock"]


class OutputLock:
    """Exclusive right to write one output; the file is there only while somebody holds it.

    Parameters
    ----------
    path
        Lock file; its folder is made.
    what
        What is locked, for the message.
    wait
        Wait for another holder instead of raising.

    Raises
    ------
    ResourceError
        From `acquire`: if another process holds the lock, or no file can be made there.
    """

    def __init__(self, path: Path, what: str, *, wait: bool = False) -> None:
        self._path = path
        self._what = what
        self._wait = wait
        self._handle: int | None = None

    def acquire(self) -> Self:
        """Take the lock."""
        import fcntl

        how = fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB)
        while self._handle is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue  # the last holder removed the folder just now
            except OSError as error:
                raise ResourceError(
                    f"expected a folder to write to, got {str(self._path.parent)!r} ({error.strerror}); choose another"
                ) from error
            try:
                fcntl.flock(handle, how)
            except BlockingIOError:
                os.close(handle)
                raise ResourceError(
                    f"another run is writing {self._what}; wait for it, or choose another output folder"
                ) from None
            except OSError as error:
                os.close(handle)
                raise ResourceError(
                    f"locking {self._what} failed: {error.strerror}; choose a folder on a file system with locks"
                ) from error
            # The last holder may have removed the file between our opening and locking it: such a lock is of no file.
            if _is_file_of(handle, self._path):
                self._handle = handle
            else:
                os.close(handle)
        return self

    def release(self) -> None:
        """Give the lock up and remove its file; nothing where it is not held."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        """Take the lock."""
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it up."""
        self.release()


def _is_file_of(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False

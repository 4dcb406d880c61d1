"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from treg_med.errors import ConfigError, ResourceError, TregMedError

__all__ = ["StagedFiles", "check_writable_folder", "safe_name", "sync", "writing"]

_LONGEST_NAME = 120
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def safe_name(name: str) -> str:
    """Return a name that can be one file in a folder, or raise.

    Raises
    ------
    ConfigError
        For anything but letters, digits, dot, dash and underscore: no path separators, no ``..``, no control
        characters, no device names, at most 120 characters.
    """
    bad = not isinstance(name, str) or len(name) > _LONGEST_NAME or not _SAFE.fullmatch(name)
    if bad or ".." in name or name.endswith(".") or _RESERVED.fullmatch(name):
        raise ConfigError(
            f"expected an output name of at most {_LONGEST_NAME} letters, digits, '.', '-' and '_', "
            f"got {ascii(name)[:60]}; choose a plain name without folders"
        )
    return name


def check_writable_folder(folder: str | os.PathLike[str], *, scratch: Path | None = None) -> Path:
    """Return a folder in which a file could be created and removed just now.

    Parameters
    ----------
    folder
        The folder.
    scratch
        Where to try it instead, as in `StagedFiles`.

    Raises
    ------
    ResourceError
        If it does not exist, is not a folder, or cannot be written to.
    """
    path = Path(os.fspath(folder)).absolute()
    try:
        if not path.exists():
            raise ResourceError(f"expected an existing output folder, got {str(path)!r}; create it first")
        if not path.is_dir():
            raise ResourceError(f"expected an output folder, got the file {str(path)!r}; name a folder")
        # Trying is the only honest test: permissions say little on network and read-only file systems. The file has no
        # name where the system can do that, so that a process killed just now leaves none.
        with tempfile.TemporaryFile(dir=path if scratch is None else scratch, prefix=".probe.", suffix=".tmp"):
            pass
    except ResourceError:
        raise
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"expected a writable output folder, got {str(path)!r}: {error}; choose another"
        ) from error
    return path


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name[:80]}.{secrets.token_hex(6)}.tmp")


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn a failure of the disk into `ResourceError`, "<what> failed: ...", and leave the project's own errors.

    Parameters
    ----------
    what
        What is being done: ``"writing 'scan.json'"``.
    """
    try:
        yield
    except TregMedError:
        raise
    except Exception as error:
        # Weights are written by a library whose own error for a full disk is no OSError.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise ResourceError(f"{what} failed: {error}; free some space or choose another folder") from error


class StagedFiles:
    """Files that are written beside their place and moved there together at the end.

    ``path`` gives a temporary path in the same folder; `commit` syncs all of them to disk and renames them in
    the order in which they were asked for; leaving the context otherwise removes them. What existed before
    stays until its replacement is complete.

    Parameters
    ----------
    overwrite
        Replace files that exist.
    scratch
        Folder for the temporary files in place of that of the final ones, on the same file system: a process that is
        killed leaves them there, where they can be told from results.
    """

    def __init__(self, *, overwrite: bool = False, scratch: Path | None = None) -> None:
        self._overwrite = overwrite
        self._scratch = scratch
        self._staged: list[tuple[Path, Path]] = []

    def path(self, final: Path) -> Path:
        """Return where to write what will become ``final``.

        Raises
        ------
        ResourceError
            If ``final`` exists and may not be overwritten.
        """
        self._refuse_existing(final)
        temporary = _temporary(final if self._scratch is None else self._scratch / final.name)
        self._staged.append((temporary, final))
        return temporary

    def _refuse_existing(self, final: Path) -> None:
        if not self._overwrite and (final.exists() or final.is_symlink()):
            raise ResourceError(
                f"{final.name!r} exists already and is kept; choose another name or allow overwriting"
            )

    def commit(self, *, durable: bool = True) -> None:
        """Make all files durable and visible, the last one last.

        ``durable=False`` does not wait for the disk: what is visible is whole after the process was killed, but may be
        lost or torn by a power cut.

        Raises
        ------
        ResourceError
            If the disk is full or the folder cannot be written to any more.
        """
        try:
            with writing("writing"):
                for temporary, final in self._staged:
                    self._refuse_existing(final)
                    if durable:
                        sync(temporary)
                for temporary, final in self._staged:
                    # replace swaps the name itself: a symbolic link there is replaced, not followed.
                    temporary.replace(final)
                for folder in {final.parent for _, final in self._staged} if durable else ():
                    sync(folder)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what is still temporary."""
        for temporary, _ in self._staged:
            temporary.unlink(missing_ok=True)
        self._staged.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not committed."""
        self.discard()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Opening files that nobody vouches for, before a single number is read from them.

HDF5 can make a dataset out of the bytes of any other file (external storage, external and soft links, virtual
datasets) and can declare terabytes in a kilobyte. `open_hdf5` walks the whole file one link at a time and
refuses all of that; only then is the file handed out, read-only. Every failure of the libraries below becomes
one typed error of the toolkit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from treg_med.errors import FormatError, ResourceError, TregMedError, UnsafeFileError

__all__ = [
    "HDF5_SIGNATURE",
    "check_bomb",
    "check_fits_memory",
    "check_hdf5",
    "check_readable_file",
    "hdf5_errors",
    "open_hdf5",
    "sha256_of",
]

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

#: A dataset that declares more than this ...
BOMB_BYTES = 4 * 2**30
#: ... and more than this many times what is stored, is refused.
BOMB_RATIO = 1000
#: Nothing larger than this is read into memory in one piece.
MEMORY_BYTES = 16 * 2**30
_MOST_OBJECTS = 100_000


def check_readable_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of an existing, readable, non-empty regular file.

    Raises
    ------
    ResourceError
        If the file does not exist, is a folder or another special file, or may not be read.
    FormatError
        If it is empty.
    """
    try:
        file = Path(os.fspath(path))
        if not file.exists():
            raise ResourceError(f"expected an existing file, got {str(file)!r}; check the path")
        if file.is_dir():
            raise ResourceError(f"expected a file, got the folder {str(file)!r}; name one file inside it")
        if not file.is_file():
            raise ResourceError(f"expected a regular file, got the special file {str(file)!r}")
        if file.stat().st_size == 0:
            raise FormatError(f"expected a scan, got {file.name!r} with 0 bytes; copy the file again")
        with file.open("rb"):
            pass
    except TregMedError:
        raise
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"expected a readable file, got {str(path)!r}: {error}; check name and permissions"
        ) from error
    return file


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_bomb(what: str, declared: int, stored: int) -> None:
    """Refuse arrays that declare far more than the file holds.

    Parameters
    ----------
    what
        Name for the message.
    declared, stored
        Bytes in memory and bytes in the file.

    Raises
    ------
    UnsafeFileError
        If more than 4 GiB and more than 1000 times the stored bytes are declared.
    """
    if declared > BOMB_BYTES and declared > BOMB_RATIO * max(stored, 1):
        raise UnsafeFileError(
            f"{what} declares {declared / 2**30:.1f} GiB but stores {stored} bytes: it would exhaust the "
            "memory; "
            "get the file from its source again"
        )


def check_fits_memory(what: str, declared: int) -> None:
    """Refuse to read more than 16 GiB in one piece.

    Raises
    ------
    ResourceError
        Names the size and the limit.
    """
    if declared > MEMORY_BYTES:
        raise ResourceError(
            f"{what} needs {declared / 2**30:.1f} GiB, more than the {MEMORY_BYTES / 2**30:.0f} GiB read at "
            "once; split the scan"
        )


@contextmanager
def hdf5_errors(name: str) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file into one `FormatError`."""
    try:
        yield
    except TregMedError:
        raise
    except MemoryError as error:
        raise ResourceError(f"not enough memory to read {name!r}; read fewer slices") from error
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise FormatError(
            f"expected a complete HDF5 file, but {name!r} is truncated or damaged ({type(error).__name__}: "
            f"{text}); "
            "copy it again and compare checksums"
        ) from error


def check_hdf5(file: h5py.File) -> None:
    """Walk an open HDF5 file and refuse everything that is not a plain dataset in a plain group.

    Each link is looked at before it is followed, so that a forbidden link in the middle of a path is found
    too.

    Raises
    ------
    UnsafeFileError
        For soft, external and user-defined links, external storage, virtual datasets, shape bombs, too many
        objects.
    """
    seen: set[int] = set()
    waiting: list[h5py.Group] = [file]
    while waiting:
        group = waiting.pop()
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            _check_link(group, name, where)
            item = group[name]
            # Hard links may form a cycle; the address in the file tells objects apart.
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _MOST_OBJECTS:
                raise UnsafeFileError(
                    f"the file holds more than {_MOST_OBJECTS} objects; a scan has a handful"
                )
            if isinstance(item, h5py.Dataset):
                _check_dataset(item, where)
            elif isinstance(item, h5py.Group):
                waiting.append(item)


def _check_link(group: h5py.Group, name: str, where: str) -> None:
    try:
        link = group.get(name, getlink=True)
    except TypeError as error:
        raise UnsafeFileError(f"{where} is a user-defined link; only plain datasets are read") from error
    if not isinstance(link, h5py.HardLink):
        kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
        raise UnsafeFileError(
            f"{where} is {kind} link and could make the reader open another file; "
            "copy the data into one file (h5copy or h5repack)"
        )


def _check_dataset(dataset: h5py.Dataset, where: str) -> None:
    if dataset.external:
        raise UnsafeFileError(
            f"{where} keeps its values in another file ({len(dataset.external)} external parts); "
            "copy the data into one file (h5repack)"
        )
    if dataset.is_virtual:
        raise UnsafeFileError(
            f"{where} is a virtual dataset made of other files; copy the data into one file (h5repack)"
        )
    if dataset.shape is not None:
        check_bomb(where, dataset.nbytes, dataset.id.get_storage_size())


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file read-only after `check_hdf5`; the caller closes it.

    Raises
    ------
    FormatError
        If the file is truncated or damaged.
    UnsafeFileError
        If it reaches outside itself or declares impossible sizes.
    """
    with hdf5_errors(path.name):
        file = h5py.File(path, "r")
        try:
            check_hdf5(file)
        except BaseException:
            file.close()
            raise
        return file

"""Folders that appear complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treg_med.data.atomic import sync
from treg_med.errors import ResourceError

__all__ = ["check_replaceable", "whole_folder"]


@contextmanager
def whole_folder(target: Path, mark: str) -> Iterator[Path]:
    """Give an empty folder to write to; it takes the place of ``target`` when the block ends without an error.

    Parameters
    ----------
    target
        Folder to make. One that is there is replaced if it is empty or holds the file ``mark``.
    mark
        File by which a folder of the same kind is known.

    Raises
    ------
    ResourceError
        If ``target`` is something else, or cannot be written.
    """
    check_replaceable(target, mark)
    staging, old = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
        for path in [*staging.rglob("*"), staging]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            sync(path)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        staging.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise ResourceError(
            f"writing {str(target)!r} failed: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(target: Path, mark: str) -> None:
    """Refuse to replace what is not a folder of the same kind.

    Raises
    ------
    ResourceError
        Naming what is there.
    """
    if target.is_dir() and ((target / mark).is_file() or not any(target.iterdir())):
        return
    if target.exists() or target.is_symlink():
        raise ResourceError(
            f"expected a new folder, an empty one or one with {mark}, got {str(target)!r}, which holds something else "
            "and is kept; choose another name"
        )

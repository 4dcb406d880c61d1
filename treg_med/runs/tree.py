"""The output tree: a BIDS-derivatives dataset with a work folder that is there only while something is unfinished."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from treg_med import __version__
from treg_med.data.atomic import StagedFiles
from treg_med.errors import ResourceError
from treg_med.notice import RESEARCH_ONLY
from treg_med.runs.locks import OutputLock

__all__ = ["WORK", "OutputTree"]

#: Folder of what is unfinished: slices of volumes under way, and locks.
WORK = ".treg_med"

_DESCRIPTION = {
    "Name": "treg_med reconstructions",
    "BIDSVersion": "1.10.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "treg_med", "Version": __version__, "Description": RESEARCH_ONLY}],
}
# What the standard does not know.
_IGNORED = ("index.jsonl", "index.damaged", "*.html", "*.png", "**/*_image.*", "**/ct/**")


class OutputTree:
    """The root of a tree of outputs.

    Parameters
    ----------
    root
        Folder; made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def prepare(self) -> None:
        """Make the root and describe the dataset; a description that is there is kept.

        Raises
        ------
        ResourceError
            If the folder cannot be written to.
        """
        text = json.dumps(_DESCRIPTION, indent=2) + "\n"
        files = {"dataset_description.json": text, ".bidsignore": "\n".join(_IGNORED) + "\n"}
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self.alone() as staged:
                for name, content in files.items():
                    if not (self.root / name).exists():
                        staged.path(self.root / name).write_text(content, encoding="utf-8")
                staged.commit()
        except OSError as error:
            if isinstance(error, ResourceError):
                raise
            raise ResourceError(
                f"expected a folder to write to, got {str(self.root)!r} ({error.strerror or error}); "
                "choose another --out"
            ) from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[StagedFiles]:
        """Give the files of the root to one process at a time, and what was left of a killed one to nobody."""
        scratch = self.root / WORK / "root"
        with OutputLock(self.root / WORK / "root.lock", "the index", wait=True):
            scratch.mkdir(parents=True, exist_ok=True)
            try:
                with StagedFiles(overwrite=True, scratch=scratch) as staged:
                    yield staged
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def records(self, key: str) -> Path:
        """Folder of the finished slices of unfinished work (`MethodPlan.record_key`)."""
        return self.root / WORK / key[:32]

    def lock(self, base: str) -> Path:
        """Lock file of a volume."""
        return self.root / WORK / f"{base}.lock"

    def tidy(self) -> None:
        """Remove the work folder if nothing unfinished is in it."""
        with contextlib.suppress(OSError):
            (self.root / WORK).rmdir()

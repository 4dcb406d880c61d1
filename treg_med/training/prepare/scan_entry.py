"""One scan of a user's folder with the sentences about it, before anything of the scan itself is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from treg_med.errors import FormatError
from treg_med.words.captions import read_attributes
from treg_med.words.scan_words import ScanWords, suggest_text, words_from_label
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["IMAGE_SUFFIXES", "MASK_WORDS", "ScanEntry", "SliceText", "find_images", "guessed_subject", "is_mask_name"]

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".h5", ".hdf5", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
#: A file with one of these words in its name holds labels: it is never taken for an image by its name alone.
MASK_WORDS = frozenset("mask masks seg dseg probseg segmentation label labels lesion lesions roi".split())
_MODALITY_WORDS = frozenset(("mr", "mri", "ct"))


@dataclass(frozen=True)
class SliceText:
    """What is said about some slices of a scan.

    Parameters
    ----------
    caption
        The user's sentence; empty where one is to be made from ``words``.
    words
        Whitelisted facts for that sentence.
    plane, contrast, finding
        As the user gave them, else empty. With a plane the text is about slices of that plane only.
    first, last
        Slices it is about, both included; None for all.
    line
        Where it stands in ``captions.jsonl``, from 1.
    """

    caption: str = ""
    words: ScanWords = field(default_factory=ScanWords)
    plane: str = ""
    contrast: str = ""
    finding: str = ""
    first: int | None = None
    last: int | None = None
    line: int = 0

    @property
    def slice_count(self) -> float:
        """How many slices it is about; infinite for all."""
        return float("inf") if self.first is None or self.last is None else self.last - self.first + 1

    def is_about(self, plane: str) -> bool:
        """Whether slices of ``plane`` are meant, by the plane given or named in the sentence."""
        return self.said_plane in (UNKNOWN, plane)

    @property
    def said_plane(self) -> str:
        """Plane given beside the sentence, else the one in it, else `UNKNOWN`."""
        return self.plane or read_attributes(self.caption).plane

    @property
    def said_contrast(self) -> str:
        """Contrast given beside the sentence, else that of the words, else the one in the sentence."""
        return self.contrast or self.words.contrast or read_attributes(self.caption).contrast

    @property
    def says_ct(self) -> bool:
        """Whether the sentence or the words name computed tomography."""
        return self.words.modality == "CT" or read_attributes(self.caption).modality == "CT"

    def sentence(self, plane: str, modality: str) -> str:
        """Return the caption of a slice of ``plane``, made from the words where the user wrote none."""
        if self.caption:
            return self.caption
        shown = None if plane == UNKNOWN else plane
        return suggest_text(replace(self.words, plane=shown, modality=modality)) or f"{modality} slice"


@dataclass(frozen=True)
class ScanEntry:
    """A scan, its texts and where it belongs.

    Parameters
    ----------
    path
        File of the scan.
    name
        Path inside the folder, with slashes.
    subject
        Whoever was scanned; all scans of a subject share a split.
    texts
        At least one.
    split
        ``train`` or ``val`` where the user decided, else empty.
    mask
        Lesion mask on the grid of the scan.
    guessed
        Whether ``subject`` was read off the file name.
    """

    path: Path
    name: str
    subject: str
    texts: tuple[SliceText, ...]
    split: str = ""
    mask: Path | None = None
    guessed: bool = False

    def about(self, plane: str) -> ScanEntry:
        """Return the entry with the texts about slices of ``plane`` only; there may be none."""
        return replace(self, texts=tuple(text for text in self.texts if text.is_about(plane)))

    def texts_of_slices(self, count: int, every: int) -> Iterator[tuple[int, list[SliceText]]]:
        """Go through the slices to keep, each with its texts: those about the fewest slices.

        Parameters
        ----------
        count
            Slices of the scan.
        every
            Of whole volumes and ranges every so manieth slice is kept; a slice named alone always is.

        Raises
        ------
        FormatError
            If a text is about slices that the scan does not have.
        """
        for text in self.texts:
            if text.last is not None and text.last >= count:
                raise FormatError(
                    f"expected slices within 0..{count - 1} of {self.name!r} in line {text.line} of captions.jsonl, "
                    f"got {text.last}; slices count from 0"
                )
        for index in range(count):
            covering = [t for t in self.texts if t.first is None or t.last is None or t.first <= index <= t.last]
            fewest = min((t.slice_count for t in covering), default=0)
            if covering and (index % every == 0 or fewest == 1):
                yield index, [t for t in covering if t.slice_count == fewest]


def find_images(folder: Path, *, leave_out: Path | None = None) -> list[Path]:
    """Return the image files of a folder and its sub-folders by suffix, sorted, hidden ones and ``leave_out`` not."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(IMAGE_SUFFIXES)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and (leave_out is None or path.absolute() != leave_out.absolute())
    )


def is_mask_name(name: str) -> bool:
    """Whether a file name says that the file holds labels."""
    return not MASK_WORDS.isdisjoint(_tokens(name.lower()))


def guessed_subject(name: str) -> str:
    """Return who was scanned, as far as a path inside the folder tells.

    ``sub-01`` anywhere is "01"; else the file name without words for contrast, plane, organ or modality, so that
    ``p07_T1.nii.gz`` and ``p07_FLAIR.nii.gz`` are one subject; else the folder.
    """
    if bids := re.search(r"(?:^|[/_])sub-([A-Za-z0-9]+)", name):
        return bids[1]
    path = PurePosixPath(name)
    kept = [t for t in _tokens(path.name.split(".")[0]) if not _is_scan_word(t)]
    return "_".join(kept) or path.parent.name or "unknown"


def _tokens(name: str) -> list[str]:
    return [token for token in re.split(r"[^A-Za-z0-9]+", name) if token]


def _is_scan_word(token: str) -> bool:
    return token.lower() in _MODALITY_WORDS or words_from_label(token) != ScanWords("MRI")

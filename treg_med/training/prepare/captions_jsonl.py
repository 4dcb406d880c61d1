r"""A user's ``captions.jsonl``: one JSON object per line about one scan of the same folder.

``{"file": "p07_T1.nii.gz", "caption": "Axial T1-weighted brain MRI."}``, with any of

- ``slice``: 12, or [10, 30] with both ends; slices count from 0 along the axis they are cut across, as stored;
- ``subject``, ``split`` ("train" or "val"), ``contrast``, ``plane``, ``finding``;
- ``mask``: a file of the same grid, non-zero in lesions.

Nothing in the file may name a path outside its folder. Symbolic links inside the folder are followed: they were put
there by whoever made the folder, not by the captions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from treg_med.errors import ConfigError, FormatError, ResourceError, UnsafeFileError
from treg_med.training.prepare.scan_entry import ScanEntry, SliceText, guessed_subject
from treg_med.words.safe_text import check_text
from treg_med.words.scan_words import words_from_label

__all__ = ["CAPTIONS", "read_captions"]

CAPTIONS = "captions.jsonl"
_TEXT_FIELDS = ("file", "caption", "subject", "split", "contrast", "plane", "finding", "mask")
_FIELDS = (*_TEXT_FIELDS, "slice")
_PLANES = ("axial", "coronal", "sagittal")
_SPLITS = ("train", "val")
_LONGEST_LINE = 100_000
_LONGEST_WORD = 200


@dataclass(frozen=True)
class _Line:
    """A line that was checked; paths are inside the folder, with slashes."""

    number: int
    file: str
    text: SliceText
    subject: str
    split: str
    mask: str


def read_captions(folder: Path) -> tuple[list[ScanEntry], list[str]]:
    """Read the captions of a folder.

    Parameters
    ----------
    folder : Path
        Holds ``captions.jsonl`` and the scans.

    Returns
    -------
    tuple of list
        One entry per scan, in the order of first mention, and warnings, each with its count.

    Raises
    ------
    FormatError
        With the line number: for a line that is no JSON object, a field of another type, a file that is not there,
        lines that contradict each other about one scan or put one subject into both splits.
    UnsafeFileError
        If a path leads out of the folder.
    """
    counts: Counter[str] = Counter()
    lines: list[_Line] = []
    seen: set[tuple[Any, ...]] = set()
    for number, fields in _objects(folder / CAPTIONS, counts):
        line = _checked_line(folder, number, fields, counts)
        key = (line.file, replace(line.text, line=0))
        if key in seen:
            counts["lines say the same as an earlier one and were passed over; delete them"] += 1
            continue
        seen.add(key)
        lines.append(line)
    if not lines:
        raise FormatError(
            f'expected lines such as {{"file": "scan.nii.gz", "caption": "..."}} in {CAPTIONS}, found none; write one '
            "per scan"
        )
    entries = _entries(folder, lines)
    _check_subjects(lines, entries)
    return entries, [f"{count} {what}" for what, count in counts.items()]


def _objects(path: Path, counts: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if raw.strip():
                    yield number, _parsed(number, raw.removeprefix(b"\xef\xbb\xbf"), counts)
    except OSError as error:
        raise ResourceError(f"expected a readable {path.name}, got {error}; check its permissions") from error


def _parsed(number: int, raw: bytes, counts: Counter[str]) -> dict[str, Any]:
    where = f"line {number} of {CAPTIONS}"
    if len(raw) > _LONGEST_LINE:
        raise FormatError(f"expected {where} to be one sentence's worth of JSON, got {len(raw)} bytes; shorten it")
    try:
        fields = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"expected {where} to be one JSON object in UTF-8, got {error}; "
            'write it as {"file": "scan.nii.gz", "caption": "..."} on one line'
        ) from error
    if not isinstance(fields, dict):
        raise FormatError(f"expected {where} to be a JSON object, got {type(fields).__name__}")
    for name in ("file", "caption"):
        if name not in fields:
            raise FormatError(f'expected "{name}" in {where}, got {", ".join(map(repr, fields)) or "nothing"}; add it')
    for name in _TEXT_FIELDS:
        # null is how other programs write a field that is not known.
        if fields.get(name) is not None and not isinstance(fields[name], str):
            raise FormatError(f'expected "{name}" in {where} to be a string, got {fields[name]!r:.60}; quote it')
    if unknown := sorted(set(fields) - set(_FIELDS)):
        counts[f"lines have fields that are not read ({', '.join(unknown)[:80]}); known are {', '.join(_FIELDS)}"] += 1
    return fields


def _checked_line(folder: Path, number: int, fields: dict[str, Any], counts: Counter[str]) -> _Line:
    where = f"line {number} of {CAPTIONS}"
    file = _inside(folder, "file", fields["file"] or "", where)
    mask = _inside(folder, "mask", fields["mask"], where) if fields.get("mask") else ""
    first, last = _slices(fields.get("slice"), where)
    word = {name: _plain(fields.get(name) or "") for name in ("subject", "split", "contrast", "plane", "finding")}
    for name, value in word.items():
        if len(value) > _LONGEST_WORD:
            raise FormatError(f'expected a short "{name}" in {where}, got {len(value)} characters; shorten it')
    for name, allowed in (("split", _SPLITS), ("plane", _PLANES)):
        if word[name] and word[name] not in allowed:
            raise FormatError(f'expected "{name}" in {where} to be {" or ".join(allowed)}, got {word[name]!r:.60}')
    caption = _plain(fields["caption"] or "")
    try:
        personal = check_text(caption)
    except ConfigError as error:
        raise FormatError(f"{where}: {error}") from error
    if personal:
        counts["captions seem to hold a name, a date or a record number; the slice file keeps captions: remove it"] += 1
    words = words_from_label(PurePosixPath(file).name.split(".")[0], modality=None)
    if not caption:
        counts["lines have an empty caption; the words of the file name are used instead, write a sentence"] += 1
    text = SliceText(caption, words, word["plane"], word["contrast"], word["finding"], first, last, number)
    return _Line(number, file, text, word["subject"], word["split"], mask)


def _plain(text: str) -> str:
    """One line of printable characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _inside(folder: Path, field: str, name: str, where: str) -> str:
    """Return a path inside the folder with slashes, of a file that is there."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts:
        raise FormatError(f'expected a file name in "{field}" of {where}, got nothing')
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name:
        raise UnsafeFileError(
            f'expected "{field}" in {where} to stay inside the folder, got {name!r:.80}; name a file in it without ".."'
        )
    try:
        there = (folder / path).is_file()
    except OSError:
        there = False
    if not there:
        raise FormatError(
            f'expected the {field} of {where} in the folder, but {str(path)!r:.80} is not there; correct "{field}" or '
            "delete the line"
        )
    return str(path)


def _slices(value: Any, where: str) -> tuple[int | None, int | None]:
    if value is None:
        return None, None
    ends = [value, value] if isinstance(value, int) else value
    whole = isinstance(ends, list) and all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if not whole or len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
        raise FormatError(
            f'expected "slice" in {where} to be a number from 0 or [first, last], got {value!r:.60}'
        )
    return ends[0], ends[1]


def _entries(folder: Path, lines: list[_Line]) -> list[ScanEntry]:
    by_file: dict[str, list[_Line]] = defaultdict(list)
    for line in lines:
        by_file[line.file].append(line)
    entries = []
    for name, about in by_file.items():
        subject = _agreed("subject", about, [line.subject for line in about])
        split = _agreed("split", about, [line.split for line in about])
        mask = _agreed("mask", about, [line.mask for line in about])
        texts = tuple(line.text for line in about)
        place = folder / mask if mask else None
        entries.append(
            ScanEntry(folder / name, name, subject or guessed_subject(name), texts, split, place, guessed=not subject)
        )
    return entries


def _agreed(what: str, lines: list[_Line], values: list[str]) -> str:
    """Return what all lines about one scan that say something say."""
    said = {value: line.number for line, value in reversed(list(zip(lines, values, strict=True))) if value}
    if len(said) > 1:
        (a, first), (b, second), *_ = sorted(said.items(), key=lambda pair: pair[1])
        raise FormatError(
            f"expected one {what} for {lines[0].file!r} in {CAPTIONS}, got {a!r:.60} in line {first} and {b!r:.60} in "
            f"line {second}; make them the same"
        )
    return next(iter(said), "")


def _check_subjects(lines: list[_Line], entries: list[ScanEntry]) -> None:
    """Refuse a subject in both splits: its slices look alike, and validation would measure memory."""
    subject_of = {entry.name: entry.subject for entry in entries}
    where: dict[str, tuple[str, int]] = {}
    for line in lines:
        if not line.split:
            continue
        subject = subject_of[line.file]
        split, number = where.setdefault(subject, (line.split, line.number))
        if split != line.split:
            raise FormatError(
                f"expected subject {subject!r:.60} in one split, got {split} in line {number} and {line.split} in line "
                f'{line.number} of {CAPTIONS}; correct "split", or "subject" where they are different people'
            )

"""The scans of a dataset: files, who was scanned, right prompts, targets, regions and volumes made elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.evaluation.config import ConfigFile, DatasetConfig, PredictionConfig
from treg_med.evaluation.regions import Box, read_boxes
from treg_med.training.prepare.captions_jsonl import CAPTIONS, read_captions
from treg_med.training.prepare.scan_entry import MASK_WORDS, find_images, guessed_subject, is_mask_name

__all__ = ["ScanFile", "find_predictions", "find_scans"]

_SCANS = (".nii", ".nii.gz", ".h5", ".hdf5")
_ENDING = re.compile(r"\.(nii\.gz|nii|h5|hdf5)$", re.IGNORECASE)
_SESSION = re.compile(r"(?:^|[/_])ses-([A-Za-z0-9]+)")
# Entities that a program adds to the name of what it was given.
_ADDED = re.compile(r"_(rec|desc|space|res)-[A-Za-z0-9]+")
# What a mask is called beside the name of its scan.
_MASKED = re.compile(
    rf"_(?:rec|desc|space|res|label)-[A-Za-z0-9]+|(?:^|[_.-])(?:{'|'.join(sorted(MASK_WORDS))})(?=[_.-]|$)",
    re.IGNORECASE,
)
_LONGEST_NAME = 80


@dataclass(frozen=True)
class ScanFile:
    """One scan of a dataset.

    Parameters
    ----------
    dataset
        Name of the dataset.
    path
        The file.
    name
        First part of the names of its outputs, different for every scan of the dataset.
    subject, session
        Who was scanned, and in which session where the path says so (``ses-``), else empty.
    caption
        The right prompt that the user wrote; None where there is none.
    target
        NIfTI volume to compare with; None for the reference of the scan itself.
    mask
        NIfTI volume that is not 0 in the region of interest.
    boxes
        Of fastMRI+.
    """

    dataset: str
    path: Path
    name: str
    subject: str
    session: str = ""
    caption: str | None = None
    target: Path | None = None
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()

    @property
    def has_regions(self) -> bool:
        """Whether there is a mask or a box."""
        return self.mask is not None or bool(self.boxes)


def find_scans(dataset: DatasetConfig, config: ConfigFile) -> list[ScanFile]:
    """Return the scans of a dataset, in the order of their paths.

    Subjects are read by ``subject`` where it is given, else from ``captions.jsonl``, else from the name: ``sub-01`` is
    "01"; without it words for contrast, plane and organ are left out, so that ``p07_T1`` and ``p07_T2`` are one.

    Raises
    ------
    ConfigError
        If nothing matches, a path has no subject, a scan has no target or several, or several masks.
    FormatError, UnsafeFileError, ResourceError
        If ``captions.jsonl`` or the table of boxes is not what it should be.
    """
    where = f"dataset {dataset.name!r}"
    paths = _matching(dataset.files, config, f"{where}: files")
    names = _names(paths, [_subject(path, dataset, config, {}) for path in paths])
    captions, subjects = _captions(dataset, config, paths)
    targets = None if dataset.target == "scan" else _matching([dataset.target], config, f"{where}: target")
    scans = []
    for path, name in zip(paths, names, strict=True):
        subject = _subject(path, dataset, config, subjects)
        session = _SESSION.search(_relative(path, config))
        scans.append(
            ScanFile(dataset.name, path, name, subject, session[1] if session else "", captions.get(path.resolve()))
        )
    if targets is not None:
        found = _matched(scans, targets, dataset, config, f"{where}: target")
        missing = [scan.path.name for scan in scans if scan not in found]
        if missing:
            raise ConfigError(
                f"{where}: expected a target of the same name or subject for every scan, got none for "
                f"{_some(missing)}; correct target, or leave these scans out of files"
            )
        scans = [replace(scan, target=_nifti(found[scan], "target", scan)) for scan in scans]
    return _with_boxes(_with_masks(scans, dataset, config), dataset, config)


def find_predictions(
    entry: PredictionConfig, scenario: str, scans: Sequence[ScanFile], dataset: DatasetConfig, config: ConfigFile
) -> dict[ScanFile, Path]:
    """Return the volume that a program made of each scan, matched by name, else by subject; some may be missing.

    Raises
    ------
    ConfigError
        If nothing matches, or one scan has several volumes.
    """
    filled = [p.replace("{dataset}", dataset.name).replace("{scenario}", scenario) for p in entry.files]
    where = f"prediction {entry.label!r}: files"
    return _matched(scans, _matching(filled, config, where), dataset, config, where)


def _matching(patterns: Sequence[str], config: ConfigFile, where: str, *, masks: bool = False) -> list[Path]:
    """Return the files of globs and folders, sorted, each once."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        place = config.resolve(pattern)
        if place.is_dir():
            found.update(dict.fromkeys(_in_folder(place, masks)))
        else:
            # The folder of the configuration may itself have a bracket in its name.
            start = Path(place.anchor) if Path(pattern).expanduser().is_absolute() else config.root
            matches = start.glob(str(place.relative_to(start)))
            found.update(dict.fromkeys(p for p in matches if p.is_file() and not p.name.startswith(".")))
    if not found:
        raise ConfigError(
            f"{where}: expected {'masks' if masks else 'scans'} that match {', '.join(map(repr, patterns))}, got none; "
            "paths start at the folder of the configuration"
        )
    return sorted(found)


def _in_folder(folder: Path, masks: bool) -> list[Path]:
    """Return the scans, or the masks, of a folder: the anatomical ones of BIDS, else every file that can be one."""
    bids = [p for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*") for p in folder.glob(pattern)]
    files = bids or find_images(folder)
    found = [p for p in files if p.name.lower().endswith(_SCANS) and p.is_file()]
    chosen = [p for p in found if is_mask_name(p.name) == masks]
    # A folder of masks need not say so in every name.
    return chosen or (found if masks else [])


def _relative(path: Path, config: ConfigFile) -> str:
    inside = path.is_relative_to(config.root)
    return (path.relative_to(config.root) if inside else path).as_posix()


def _subject(path: Path, dataset: DatasetConfig, config: ConfigFile, said: Mapping[Path, str]) -> str:
    name = _relative(path, config)
    if dataset.subject is None:
        return said.get(path.resolve()) or guessed_subject(name)
    match = re.search(dataset.subject, name)
    if match is None or not match[1]:
        raise ConfigError(
            f"dataset {dataset.name!r}: expected a subject in every path, got none in {name!r} by {dataset.subject!r}; "
            "correct subject, or leave it out"
        )
    return match[1]


def _stem(path: Path) -> str:
    return _ENDING.sub("", path.name)


def _names(paths: Sequence[Path], subjects: Sequence[str]) -> list[str]:
    """Return names that give different outputs: the file's own, else one with subject, session and a running number."""
    names = [_safe(_stem(path)) for path in paths]
    for position in _meeting(names):
        path = paths[position]
        session = _SESSION.search(path.as_posix())
        parts = [f"sub-{_alphanumeric(subjects[position]) or 'unknown'}"] + ([f"ses-{session[1]}"] if session else [])
        names[position] = "_".join([*parts, _suffix(names[position])])
    for number, position in enumerate(_meeting(names), 1):
        head, _, suffix = names[position].rpartition("_")
        names[position] = f"{head}_run-{number}_{suffix}"
    return names


def _suffix(name: str) -> str:
    """Return what stays of a name beside the subject: the contrast of BIDS, else its letters and digits."""
    return name.rpartition("_")[2] if name.startswith("sub-") and "_" in name else _alphanumeric(name)


def _meeting(names: Sequence[str]) -> list[int]:
    """Return the positions of names that would give another one's outputs, which drop case and punctuation."""
    keys = [name.lower() if name.startswith("sub-") else _alphanumeric(name).lower() for name in names]
    counts = Counter(keys)
    return [position for position, key in enumerate(keys) if counts[key] > 1]


def _alphanumeric(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "", text)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:_LONGEST_NAME] or "scan"


def _captions(
    dataset: DatasetConfig, config: ConfigFile, paths: Sequence[Path]
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return captions and subjects of the scans that have a line in ``captions.jsonl``."""
    if dataset.captions is not None:
        given = config.resolve(dataset.captions)
        folder = given if given.is_dir() else given.parent
        if not (folder / CAPTIONS).is_file() or (given != folder and given.name != CAPTIONS):
            raise ResourceError(
                f"dataset {dataset.name!r}: expected captions to be a {CAPTIONS} or its folder, got {given.name!r}; "
                "check the path"
            )
        folders = [folder]
    else:
        folders = sorted({path.parent for path in paths if (path.parent / CAPTIONS).is_file()})
    texts: dict[Path, str] = {}
    subjects: dict[Path, str] = {}
    for folder in folders:
        entries, _ = read_captions(folder)
        for entry in entries:
            # A prompt is for a volume: a sentence about all slices goes before one about some.
            text = max(entry.texts, key=lambda text: (bool(text.caption), text.slice_count))
            texts[entry.path.resolve()] = text.caption
            if not entry.guessed:
                subjects[entry.path.resolve()] = entry.subject
    return {path: text for path, text in texts.items() if text}, subjects


def _matched(
    scans: Sequence[ScanFile],
    files: Sequence[Path],
    dataset: DatasetConfig,
    config: ConfigFile,
    where: str,
    *,
    masks: bool = False,
) -> dict[ScanFile, Path]:
    """Return the file that belongs to each scan: of the same name, else the only one of the subject."""
    by_name: dict[str, list[Path]] = {}
    by_subject: dict[str, list[Path]] = {}
    for path in files:
        called = _of_scan(path) if masks else path
        for name in {_stem(called), _ADDED.sub("", _stem(called))}:
            by_name.setdefault(name, []).append(path)
        by_subject.setdefault(_subject(called, dataset, config, {}), []).append(path)
    found = {}
    scans_of = Counter(scan.subject for scan in scans)
    for scan in scans:
        names = {_stem(scan.path), scan.name, _ADDED.sub("", _stem(scan.path))}
        own = {path for name in names for path in by_name.get(name, [])}
        # Files called alike in the folders of several subjects are told apart by the subject.
        same = {path for path in own if path in by_subject.get(scan.subject, [])} or own
        # With several scans of a subject nothing but the name says which one a file belongs to.
        candidates = sorted(same or (by_subject.get(scan.subject, []) if scans_of[scan.subject] == 1 else []))
        if len(candidates) > 1:
            raise ConfigError(
                f"{where}: expected one file for {scan.path.name!r}, got {len(candidates)} "
                f"({_some([path.name for path in candidates])}); name them like the scan, or narrow the pattern"
            )
        if candidates:
            found[scan] = candidates[0]
    if not found:
        raise ConfigError(
            f"{where}: expected files named like the scans, or with their subject, got {_some([p.name for p in files])}"
        )
    return found


def _of_scan(mask: Path) -> Path:
    """Return what the scan of a mask is called: ``p07_FLAIR`` for ``p07_FLAIR_lesions``."""
    stem = _stem(mask)
    return mask.with_name((_MASKED.sub("", stem).strip("_.-") or stem) + mask.name[len(stem) :])


def _with_masks(scans: Sequence[ScanFile], dataset: DatasetConfig, config: ConfigFile) -> list[ScanFile]:
    if dataset.masks is None:
        return list(scans)
    where = f"dataset {dataset.name!r}: masks"
    files = _matching(dataset.masks, config, where, masks=True)
    found = _matched(scans, files, dataset, config, where, masks=True)
    return [replace(scan, mask=_nifti(found[scan], "mask", scan)) if scan in found else scan for scan in scans]


def _with_boxes(scans: Sequence[ScanFile], dataset: DatasetConfig, config: ConfigFile) -> list[ScanFile]:
    if dataset.boxes is None:
        return list(scans)
    annotations = read_boxes(config.resolve(dataset.boxes))
    by_file: dict[str, list[Box]] = {name: [] for name, _ in annotations.study_labels}
    for box in annotations.boxes:
        by_file.setdefault(box.file, []).append(box)
    if not any(_stem(scan.path) in by_file for scan in scans):
        raise ConfigError(
            f"dataset {dataset.name!r}: boxes: expected boxes of files named like the scans, such as "
            f"{_stem(scans[0].path)!r}, got those of {_some(list(by_file)) or 'no file'}; is this the table for these "
            "scans?"
        )
    return [replace(scan, boxes=tuple(by_file.get(_stem(scan.path), ()))) for scan in scans]


def _nifti(path: Path, what: str, scan: ScanFile) -> Path:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise FormatError(f"expected a NIfTI volume as {what} of {scan.path.name!r}, got {path.name!r}")
    return path


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")

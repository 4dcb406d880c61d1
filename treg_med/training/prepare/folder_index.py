"""What a user's folder holds: every scan with its texts, from ``captions.jsonl``, BIDS or the file names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from treg_med.errors import FormatError, ResourceError
from treg_med.training.prepare.bids import is_bids, read_bids
from treg_med.training.prepare.captions_jsonl import CAPTIONS, read_captions
from treg_med.training.prepare.scan_entry import ScanEntry, SliceText, find_images, guessed_subject, is_mask_name
from treg_med.words.scan_words import words_from_label

__all__ = ["index_folder"]


def index_folder(folder: Path, *, leave_out: Path | None = None) -> tuple[list[ScanEntry], list[str]]:
    """Return the captioned scans of a folder and warnings, each with its count.

    Parameters
    ----------
    folder : Path
        With ``captions.jsonl``, else a BIDS folder, else scans whose file names say contrast or organ.
    leave_out : Path, optional
        File that is no scan of the user: the slice file to be written.

    Raises
    ------
    ResourceError
        If the folder is not there.
    FormatError, UnsafeFileError
        If ``captions.jsonl`` or a sidecar is not what it should be, or nothing in the folder has a caption.
    """
    if not folder.is_dir():
        raise ResourceError(f"expected a folder of scans, got {str(folder)!r}, which is not there; check the path")
    if (folder / CAPTIONS).is_file():
        entries, warnings = read_captions(folder)
        named = {path.absolute() for entry in entries for path in (entry.path, entry.mask) if path}
        others = [p for p in find_images(folder, leave_out=leave_out) if p.absolute() not in named]
        left_out = [path for path in others if not is_mask_name(path.name)]
        if left_out:
            warnings.append(
                f"{len(left_out)} scans have no line in {CAPTIONS} and were left out ({_names(left_out)}); add lines"
            )
    elif is_bids(folder):
        entries, warnings = read_bids(folder)
    else:
        entries, warnings = _by_file_names(folder, leave_out)
    guessed = sum(entry.guessed for entry in entries)
    if guessed:
        warnings.append(
            f'{guessed} scans name no subject; it was read off the file names, give "subject" where that is wrong'
        )
    return entries, warnings


def _by_file_names(folder: Path, leave_out: Path | None) -> tuple[list[ScanEntry], list[str]]:
    """Caption scans by the whitelisted words of their names, as ``p07_brain_FLAIR.nii.gz``."""
    entries, silent = [], []
    for path in find_images(folder, leave_out=leave_out):
        if is_mask_name(path.name):
            continue
        words = words_from_label(path.name.split(".")[0], modality=None)
        if words.contrast is None and words.anatomy is None:
            silent.append(path)
            continue
        name = path.relative_to(folder).as_posix()
        text = SliceText(words=words, plane=words.plane or "")
        entries.append(ScanEntry(path, name, guessed_subject(name), (text,), guessed=True))
    if not entries:
        dicom = any(folder.rglob("*.dcm"))
        raise FormatError(
            f"expected {CAPTIONS}, a BIDS folder or file names with words such as T1 or FLAIR in {folder.name!r}, got "
            f"{len(silent)} scans without a caption; "
            + ("convert the DICOM series to NIfTI (dcm2niix) and " if dicom and not silent else "")
            + f'write {CAPTIONS} with one line per scan: {{"file": "scan.nii.gz", "caption": "..."}}'
        )
    left_out = f"{len(silent)} scans have no caption and were left out ({_names(silent)}); write {CAPTIONS}"
    return entries, [left_out] if silent else []


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")

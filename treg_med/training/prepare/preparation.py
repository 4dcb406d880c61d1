"""From a user's folder of scans to the one slice file that training reads."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from treg_med.data.atomic import StagedFiles, check_writable_folder, safe_name, writing
from treg_med.data.safe_hdf5 import HDF5_SIGNATURE, check_readable_file, sha256_of
from treg_med.errors import ConfigError, FormatError
from treg_med.training.prepare.folder_index import index_folder
from treg_med.training.prepare.scan_entry import ScanEntry, SliceText
from treg_med.training.prepare.slice_file import (
    VERSION,
    SliceFileWriter,
    SliceRow,
    fingerprint,
    split_rows,
    stored_fingerprint,
)
from treg_med.training.prepare.slice_file_copy import copy_slice_file, has_masks, is_slice_file
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["prepare_slices"]

_PLANES = ("axial", "coronal", "sagittal")
_SIZES = (16, 2048)
_LEAST_FOREGROUND = 0.02
_SAMPLE = 64 * 1024
_PROGRESS_LINES = 40


@dataclass(frozen=True)
class _Settings:
    size: int
    planes: tuple[str, ...]
    every: int
    val_share: float
    seed: int
    window: tuple[float, float] | None

    def __post_init__(self) -> None:
        if not _SIZES[0] <= self.size <= _SIZES[1]:
            raise ConfigError(f"expected a size from {_SIZES[0]} to {_SIZES[1]} pixels, got {self.size}")
        if not self.planes or len(set(self.planes)) < len(self.planes) or not set(self.planes) <= set(_PLANES):
            raise ConfigError(f"expected planes out of {', '.join(_PLANES)}, each once, got {self.planes!r}")
        if self.every < 1:
            raise ConfigError(f"expected every 1st, 2nd, ... slice, got every={self.every}")
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"expected a val_share of at least 0 and below 1, got {self.val_share}")
        if self.window is not None and not (
            len(self.window) == 2 and all(map(math.isfinite, self.window)) and self.window[0] < self.window[1]
        ):
            raise ConfigError(f"expected a window (low, high) in HU, low < high, got {self.window!r}")


def prepare_slices(
    source: Path,
    target: Path,
    *,
    size: int = 256,
    planes: tuple[str, ...] = ("axial",),
    every: int = 1,
    val_share: float = 0.15,
    seed: int = 0,
    window: tuple[float, float] | None = None,
    log: Callable[[str], object] = print,
) -> Path:
    """Turn captioned scans into one slice file; return at once where it is there and nothing has changed.

    ``pixel = 255 clip((v - low) / (high - low), 0, 1)``: MR from 0 to the 99.7 percentile of the head of each scan, CT
    (values in Hounsfield units) in ``window``. Slices are upright as the solvers show them to a prior, with square
    pixels, centred in ``size`` x ``size``; slices with less than 2 % foreground are left out.

    Parameters
    ----------
    source : Path
        Folder with ``captions.jsonl`` (see `prepare.captions_jsonl`), BIDS folder, folder of scans whose file names say
        contrast or organ, or a slice file in HDF5. Scans are NIfTI, HDF5 (`TrainingScanReader`) or pictures.
    target : Path
        Slice file to write (`prepare.slice_file`), in an existing folder. It appears complete or not at all.
    size : int
        Height and width of a slice in pixels.
    planes : tuple of str
        Planes that volumes are cut into; HDF5 stacks and pictures are taken as they are.
    every : int
        Keep every so manieth slice of whole volumes and ranges.
    val_share : float
        Share of the subjects that become val, the same ones for one ``seed``; the others are train.
    seed : int
        Of the choice of subjects.
    window : tuple of float, optional
        (low, high) in HU for CT; -1000 to 1000 by default.
    log : callable
        Gets one line of text at a time; warnings start with "warning: ".

    Returns
    -------
    Path
        The slice file.

    Raises
    ------
    ConfigError
        For settings that cannot be used.
    ResourceError
        If the source is missing, or the target cannot be written or is a file of another kind.
    FormatError, GeometryError, NumericsError, UnsafeFileError
        If captions or a scan are not what they should be; the message names the line or the scan.
    """
    settings = _Settings(size, tuple(planes), every, val_share, seed, window)
    source = Path(source)
    final = check_writable_folder(Path(target).parent) / safe_name(Path(target).name)
    job = _copy_job(source, final, settings) if source.is_file() else _folder_job(source, final, settings)
    for warning in job.warnings:
        log(f"warning: {warning}")
    facts = [VERSION, asdict(settings), job.facts]
    digest = fingerprint(facts)
    if stored_fingerprint(final) == digest:
        log(f"{final.name} is up to date")
        return final
    with StagedFiles(overwrite=True) as staged:
        temporary = staged.path(final)
        with (
            writing(f"writing {final.name!r}"),
            SliceFileWriter(temporary, size, masks=job.masks) as writer,
        ):
            rows, warnings = job.fill(writer, log)
            writer.finish(rows, {"settings": _settings_text(settings), "fingerprint": digest})
        staged.commit()
    for warning in warnings:
        log(f"warning: {warning}")
    log(_summary(final, rows))
    return final


@dataclass(frozen=True)
class _Job:
    """What there is to do: facts for the fingerprint, and how to fill the file."""

    facts: Any
    masks: bool
    warnings: list[str]
    fill: Callable[[SliceFileWriter, Callable[[str], object]], tuple[list[SliceRow], list[str]]]


def _folder_job(source: Path, final: Path, settings: _Settings) -> _Job:
    entries, warnings = index_folder(source, leave_out=final)

    def fill(writer: SliceFileWriter, log: Callable[[str], object]) -> tuple[list[SliceRow], list[str]]:
        return _fill_from_scans(entries, writer, settings, log)

    return _Job([_facts(e) for e in entries], any(e.mask for e in entries), warnings, fill)


def _copy_job(source: Path, final: Path, settings: _Settings) -> _Job:
    check_readable_file(source)
    if final.exists() and source.samefile(final):
        raise ConfigError(f"expected another file to write than {final.name!r}, the source; change the target")
    with source.open("rb") as stream:
        is_hdf5 = stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    if not is_hdf5 or not is_slice_file(source):
        raise FormatError(
            f"expected a folder, or an HDF5 file with images and captions, got {source.name!r}; put scans into a "
            "folder with captions.jsonl"
        )
    options = {k: getattr(settings, k) for k in ("size", "every", "window", "val_share", "seed")}

    def fill(writer: SliceFileWriter, log: Callable[[str], object]) -> tuple[list[SliceRow], list[str]]:
        rows, warnings = copy_slice_file(source, writer, least_foreground=_LEAST_FOREGROUND, **options)
        return _checked_rows(rows, []), warnings

    return _Job([source.name, sha256_of(source)], has_masks(source), [], fill)


def _facts(entry: ScanEntry) -> list[Any]:
    """Everything about a scan that the slice file depends on."""
    files = [[path.name, *_content(path)] for path in (entry.path, entry.mask) if path is not None]
    return [entry.name, entry.subject, entry.split, files, [asdict(text) for text in entry.texts]]


def _content(path: Path) -> tuple[int, str]:
    """Size and a digest of first, middle and last bytes; the last ones of a gzip file hold its checksum."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for start in (0, size // 2, max(size - _SAMPLE, 0)):
            stream.seek(start)
            digest.update(stream.read(_SAMPLE))
    return size, digest.hexdigest()


def _fill_from_scans(
    entries: Sequence[ScanEntry], writer: SliceFileWriter, settings: _Settings, log: Callable[[str], object]
) -> tuple[list[SliceRow], list[str]]:
    # Here and not above: MONAI takes seconds to import, and a file that is up to date needs none of it.
    from monai.data import Dataset

    from treg_med.training.prepare.slice_transforms import (
        as_typed_errors,
        cannot_be_cut,
        load_upright,
        to_square_slices,
    )

    work = [(entry, plane) for entry in entries for plane in settings.planes]
    scans = Dataset([_item(entry, plane) for entry, plane in work], load_upright())
    finish = to_square_slices(settings.size, settings.window)
    stacks: set[str] = set()
    notes = _Notes()
    for number, (entry, plane) in enumerate(work):
        about = entry.about(plane)
        is_volume = entry.name.lower().endswith((".nii", ".nii.gz"))
        if entry.name in stacks or (is_volume and not about.texts):
            continue
        with as_typed_errors(entry.name):
            item = scans[number]
        if not item["own_plane"]:
            stacks.add(entry.name)
            about = entry
        if cannot_be_cut(item):
            notes.thick[entry.name] = item["own_plane"]
            continue
        chosen = list(about.texts_of_slices(len(item["image"]), settings.every))
        if not chosen:
            continue
        item |= {"kept": [i for i, _ in chosen], "says_ct": any(text.says_ct for text in entry.texts)}
        with as_typed_errors(entry.name):
            item = finish(item)
        added = _add(writer, entry, item, chosen)
        notes.seen(entry, item, len(chosen) - added)
        if (number + 1) % max(1, len(work) // _PROGRESS_LINES) == 0:
            log(f"{number + 1}/{len(work)} {entry.name}: {added} slices")
    warnings = notes.warnings(entries, settings.planes)
    rows, more = split_rows(_checked_rows(writer.rows, warnings), settings.val_share, settings.seed)
    return rows, warnings + more


def _item(entry: ScanEntry, plane: str) -> dict[str, Any]:
    item = {"image": entry.path, "plane": plane}
    return item if entry.mask is None else item | {"mask": entry.mask}


def _add(
    writer: SliceFileWriter, entry: ScanEntry, item: dict[str, Any], chosen: Sequence[tuple[int, list[SliceText]]]
) -> int:
    """Write the slices that show something, once per text; return how many there were."""
    filled = (item["foreground"] >= _LEAST_FOREGROUND).tolist()
    kept, rows = [], []
    for position, (index, texts) in enumerate(chosen):
        if not filled[position]:
            continue
        for text in texts:
            kept.append(position)
            rows.append(_row(entry, item, index, text))
    masks = item["mask"][kept].numpy() if "mask" in item else None
    writer.add(rows, item["image"][kept].numpy(), masks)
    return sum(filled)


def _row(entry: ScanEntry, item: dict[str, Any], index: int, text: SliceText) -> SliceRow:
    cut = bool(item["own_plane"]) and item["known"]
    plane = item["plane"] if cut else text.said_plane
    return SliceRow(
        captions=text.sentence(plane, item["modality"]),
        contrast=text.said_contrast,
        plane=plane,
        finding=text.finding or UNKNOWN,
        subject=entry.subject,
        split=entry.split,
        source=entry.path.name,
        modality=item["modality"],
        slice_index=index,
        pixel_spacing_mm=item["pixel_mm"],
        has_lesion_mask="mask" in item,
        group=f"{entry.name}/{item['plane']}",
    )


class _Notes:
    """What a user should know about the scans that were read."""

    def __init__(self) -> None:
        self.thick: dict[str, str] = {}
        self._used: set[str] = set()
        self._unknown: set[str] = set()
        self._empty = 0

    def seen(self, entry: ScanEntry, item: dict[str, Any], empty: int) -> None:
        self._used.add(entry.name)
        self._empty += empty
        if item["own_plane"] and not item["known"]:
            self._unknown.add(entry.name)

    def warnings(self, entries: Sequence[ScanEntry], planes: Sequence[str]) -> list[str]:
        return [*self._about_scans(entries, planes)]

    def _about_scans(self, entries: Sequence[ScanEntry], planes: Sequence[str]) -> Iterator[str]:
        asked = ", ".join(planes)
        if self.thick:
            own = ", ".join(sorted(set(self.thick.values())))
            yield (
                f"{len(self.thick)} volumes were not cut into every plane of {asked}: their pixels there are coarser "
                f"than 1:3; they are {own}"
            )
        silent = [e.name for e in entries if e.name not in self._used | set(self.thick)]
        if silent:
            said = ", ".join(sorted({t.said_plane for e in entries if e.name in silent for t in e.texts}))
            yield f"{len(silent)} scans have no caption for {asked} slices and were left out; their captions say {said}"
        if self._unknown:
            yield (
                f"{len(self._unknown)} volumes do not say how the patient lay (sform and qform code 0): left and right "
                "are unknown and their planes too; set the code in the header if the affine is right"
            )
        if self._empty:
            yield f"{self._empty} slices show next to nothing and were left out"


def _checked_rows(rows: list[SliceRow], reasons: Sequence[str]) -> list[SliceRow]:
    if rows:
        return rows
    why = "; ".join(reasons) or "all are empty"
    raise FormatError(f"expected slices to train on, got none: {why}; choose other planes or correct the captions")


def _settings_text(settings: _Settings) -> str:
    from treg_med.training.prepare.slice_transforms import CT_WINDOW

    return json.dumps(asdict(settings) | {"ct_window": settings.window or CT_WINDOW})


def _summary(path: Path, rows: Sequence[SliceRow]) -> str:
    parts = []
    for split in ("train", "val"):
        chosen = [row for row in rows if row.split == split]
        parts.append(f"{len(chosen)} {split} slices of {len({row.subject for row in chosen})} subjects")
    return f"{path.name}: {', '.join(parts)}"

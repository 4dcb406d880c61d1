"""Names of outputs in the manner of BIDS derivatives: ``sub-01_rec-treg_desc-control_T2w``.

A name of the input in the form of BIDS keeps its parts; of any other the letters and digits become the subject's label.
``rec-`` names the reconstruction and ``desc-`` its variant (BIDS 1.10, file names and derivatives).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from treg_med.data.atomic import safe_name
from treg_med.errors import ConfigError
from treg_med.words.scan_words import ScanWords

__all__ = ["VARIANTS", "OutputName", "output_name", "unique_labels"]

#: Endings of method labels that name a variant of a reconstruction, not another one.
VARIANTS = ("control", "empty", "wrong", "shuffled")

_BIDS = re.compile(r"sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*(_[A-Za-z0-9]+)?")
_EXTENSION = re.compile(r"\.(nii\.gz|nii|h5|hdf5|hdf|hdr)$", re.IGNORECASE)
# The order of BIDS; parts it does not list come before the description.
_ORDER = ("sub", "ses", "sample", "task", "acq", "ce", "trc", "stain", "rec", "dir", "run", "echo", "part", "space")
_SUFFIXES = {"T1w": "T1w", "T1w+Gd": "T1w", "T2w": "T2w", "FLAIR": "FLAIR", "PDw": "PDw", "PDw+FS": "PDw"}
_LONGEST_LABEL = 48


@dataclass(frozen=True)
class OutputName:
    """The parts that the outputs of one volume share.

    Parameters
    ----------
    entities
        Pairs such as ``("sub", "01")``, without ``rec`` and ``desc``.
    suffix
        Contrast, ``ct``, or ``image`` where the input does not say.
    datatype
        Folder of the modality: ``anat`` or ``ct``.
    """

    entities: tuple[tuple[str, str], ...]
    suffix: str
    datatype: str

    @property
    def folder(self) -> Path:
        """Folder of the outputs, relative to the root of the tree."""
        parts = dict(self.entities)
        session = [f"ses-{parts['ses']}"] if "ses" in parts else []
        return Path(f"sub-{parts['sub']}", *session, self.datatype)

    @property
    def base(self) -> str:
        """Name of the volume without a method."""
        return self._join(self.entities)

    def stem(self, label: str) -> str:
        """Name of what the method called ``label`` makes of the volume, without extension.

        Raises
        ------
        ConfigError
            If it would be longer than a file name should be.
        """
        name, _, ending = label.rpartition("-")
        variant = ending if name and ending in VARIANTS else None
        rec = _alphanumeric(name if variant else label)
        if not rec:
            raise ConfigError(f"expected a method label with a letter or digit, got {label!r}")
        parts = [*self.entities, ("rec", rec), *([("desc", variant)] if variant else [])]
        return safe_name(self._join(parts))

    def _join(self, parts: Sequence[tuple[str, str]]) -> str:
        def rank(part: tuple[str, str]) -> int:
            if part[0] == "desc":
                return len(_ORDER) + 1
            return _ORDER.index(part[0]) if part[0] in _ORDER else len(_ORDER)

        return "_".join([*(f"{k}-{v}" for k, v in sorted(parts, key=rank)), self.suffix])


def output_name(name: str, words: ScanWords) -> OutputName:
    """Return the parts of output names for an input called ``name``, whose header says ``words``.

    Parameters
    ----------
    name
        File name, or a name in the form of BIDS: ``sub-01_ses-2_T2w``.
    words
        Whitelisted words of the scan.
    """
    stem = _EXTENSION.sub("", name)
    datatype = "ct" if words.modality == "CT" else "anat"
    suffix = "ct" if words.modality == "CT" else _SUFFIXES.get(words.contrast or "", "image")
    entities, own_suffix = _parts(stem)
    if not _BIDS.fullmatch(stem) and words.modality != "CT" and words.contrast == "T1w+Gd":
        entities = (*entities, ("ce", "gadolinium"))
    return OutputName(entities, own_suffix or suffix, datatype)


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """Return a name for each input from which outputs can be named without two meeting in one.

    It is the file name; where two inputs share it (whatever their case), folders above it are put before it.

    Raises
    ------
    ConfigError
        If an input is given twice.
    """
    resolved = [path.absolute() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(p for p in resolved if resolved.count(p) > 1)
        raise ConfigError(f"expected every input once, got {twice.name!r} twice")
    labels = [path.name for path in resolved]
    for depth in range(1, max((len(p.parts) for p in resolved), default=1)):
        shared = _meeting(labels)
        if not shared:
            return labels
        for i in shared:
            above = resolved[i].parts[-1 - depth] if depth < len(resolved[i].parts) - 1 else ""
            labels[i] = f"{_alphanumeric(above)}{_alphanumeric(_EXTENSION.sub('', labels[i]))}"
    for i in _meeting(labels):
        labels[i] += hashlib.sha256(str(resolved[i]).encode()).hexdigest()[:8]
    return labels


def _meeting(labels: Sequence[str]) -> list[int]:
    """Positions of labels that would give another one's outputs."""
    keys = [_key(label) for label in labels]
    return [i for i, key in enumerate(keys) if keys.count(key) > 1]


def _key(label: str) -> str:
    entities, suffix = _parts(_EXTENSION.sub("", label))
    return "_".join([*(f"{k}-{v}" for k, v in sorted(entities)), suffix or ""]).lower()


def _parts(stem: str) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Return what outputs take from a name: the entities, and the suffix if it has one."""
    if not _BIDS.fullmatch(stem):
        return (("sub", _label(stem)),), None
    parts = stem.split("_")
    suffix = None if "-" in parts[-1] else parts.pop()
    found = {key: value for key, value in (part.split("-", 1) for part in parts)}
    return tuple((k, _label(v)) for k, v in found.items() if k not in ("rec", "desc")), suffix


def _label(stem: str) -> str:
    text = _alphanumeric(stem) or "scan"
    if len(text) <= _LONGEST_LABEL:
        return text
    return text[: _LONGEST_LABEL - 8] + hashlib.sha256(text.encode()).hexdigest()[:8]


def _alphanumeric(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "", text)

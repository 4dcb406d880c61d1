"""The contract of every reader, the base class that keeps most of it, and the battery that checks it.

A `SliceSource` has a length and a header, gives ``source[i] -> Measurement`` lazily, is a context manager,
and pickles by reopening its file. A new reader subclasses `ScanReader`, implements `_measure` and passes
`validate_source`.
"""

from __future__ import annotations

import html
import json
import os
import pickle
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch

from treg_med.data.records import Geometry, Measurement
from treg_med.data.safe_hdf5 import sha256_of
from treg_med.errors import ConfigError, FormatError, ResourceError, TregMedError
from treg_med.words.scan_words import ScanWords, suggest_text

__all__ = ["ScanHeader", "ScanReader", "SliceSource", "validate_source"]

_CACHED_SLICES = 4


@dataclass(frozen=True)
class ScanHeader:
    """What a scan says about itself: a record (``header.coils``) and a dictionary (``header["coils"]``).

    Parameters
    ----------
    format
        Name of the file format.
    n_slices, image_shape, coils
        Slices, (H, W) of the reconstructed images, receive coils.
    spacing_mm
        Distance between rows, columns and slices.
    geometry_known
        False when the position in the patient is unknown ("unknown geometry").
    words
        Whitelisted modality, anatomy, contrast and plane.
    text
        Suggested text, made of these words only; None if nothing is known.
    noise_std
        Noise level from the file; None if it has to be estimated.
    acceleration
        True undersampling factor; None if it differs between slices or is not known before reading.
    simulated
        Whether k-space was computed from images.
    operations
        What was done to the data on the way, one dictionary each.
    warnings
        Sentences that belong beside every result.
    description
        Free text of the file; shown, never copied to an output.
    views, beam, arc_deg
        CT: number of views, "parallel", "fan" or "cone", and the arc they cover in degrees; None for MRI.
    medical
        False for a scan of something that is no body: no text is suggested, as no medical prior applies.
    """

    format: str
    n_slices: int
    image_shape: tuple[int, int]
    coils: int
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    geometry_known: bool = False
    words: ScanWords = field(default_factory=ScanWords)
    text: str | None = None
    noise_std: float | None = None
    acceleration: float | None = None
    simulated: bool = False
    operations: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    description: str | None = None
    views: int | None = None
    beam: str | None = None
    arc_deg: float | None = None
    medical: bool = True

    def __post_init__(self) -> None:
        if self.text is None and self.medical:
            object.__setattr__(self, "text", suggest_text(self.words))

    def __getitem__(self, name: str) -> Any:
        """Return a field by name."""
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> tuple[str, ...]:
        """Return the names of all fields."""
        return tuple(f.name for f in fields(self))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        words = {f.name: getattr(self.words, f.name) for f in fields(self.words)}
        plain = {name: self[name] for name in self.keys() if name != "words"}
        return (
            plain
            | words
            | {"operations": [dict(o) for o in self.operations], "warnings": list(self.warnings)}
        )


@runtime_checkable
class SliceSource(Protocol):
    """A scan as a lazy sequence of measurements."""

    @property
    def header(self) -> ScanHeader:
        """What the scan says about itself."""

    def __len__(self) -> int:
        """Return the number of slices."""

    def __getitem__(self, index: int) -> Measurement:
        """Return one slice; negative indices count from the end."""

    def __iter__(self) -> Iterator[Measurement]:
        """Go through all slices in order."""

    def close(self) -> None:
        """Close the file; later reads raise `ResourceError`."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""


def _reopen(reader: type[ScanReader], path: Path, options: dict[str, Any]) -> ScanReader:
    return reader(path, **options)


class ScanReader(ABC):
    """Base of the readers: indices, a small cache, closing and pickling.

    A subclass names its ``format``, reads everything cheap in ``__init__`` (which must call
    ``super().__init__`` with the options that reopen it) and sets ``self.header``; `_measure` reads one
    slice.
    """

    format: ClassVar[str] = ""
    header: ScanHeader
    geometry: Geometry

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        # Absolute, so that a worker with another working folder finds the file.
        self.path = Path(path).absolute()
        self._options = dict(options)
        self._recent: OrderedDict[int, Measurement] = OrderedDict()
        self._closed = False

    @abstractmethod
    def _measure(self, index: int) -> Measurement:
        """Read slice ``index`` (0 <= index < len)."""

    @property
    def options(self) -> dict[str, Any]:
        """Options it was opened with."""
        return dict(self._options)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, computed when first needed."""
        return sha256_of(self.path)

    def _provenance(self) -> dict[str, Any]:
        """Return the facts that every measurement of this scan carries."""
        return {
            "format": self.header.format,
            "input_sha256": self.sha256,
            "simulated": self.header.simulated,
            "geometry": "from the file" if self.header.geometry_known else "unknown geometry",
            "text_suggestion": self.header.text,
            "operations": [dict(o) for o in self.header.operations],
            "warnings": self.header.warnings,
        }

    def __len__(self) -> int:
        """Return the number of slices."""
        return self.header.n_slices

    def __getitem__(self, index: int) -> Measurement:
        """Return one slice as a `Measurement`; negative indices count from the end."""
        if self._closed:
            raise ResourceError("expected an open scan, but it was closed; call open_scan again")
        try:
            position = index.__index__()
        except AttributeError:
            raise TypeError(
                f"expected a slice number, got {type(index).__name__}; use [scan[i] for i in range(a, b)]"
            ) from None
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"slice {index} of a scan with {len(self)} slices")
        if position not in self._recent:
            self._recent[position] = self._measure(position)
            if len(self._recent) > _CACHED_SLICES:
                self._recent.popitem(last=False)
        self._recent.move_to_end(position)
        return self._recent[position]

    def __iter__(self) -> Iterator[Measurement]:
        """Go through all slices in order."""
        return (self[i] for i in range(len(self)))

    def close(self) -> None:
        """Forget what was read; later reads raise `ResourceError`."""
        self._closed = True
        self._recent.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the scan."""
        self.close()

    def __reduce__(self) -> tuple[Callable[..., ScanReader], tuple[Any, ...]]:
        """Pickle the path and the options: the copy reopens the file."""
        return _reopen, (type(self), self.path, self._options)

    def _facts(self) -> list[tuple[str, str]]:
        header = self.header
        spacing = " x ".join(f"{s:.3g}" for s in header.spacing_mm)
        place = f"{spacing} mm" if header.geometry_known else f"{spacing} mm, unknown geometry"
        noise = "to be estimated" if header.noise_std is None else f"{header.noise_std:.4g}"
        size = f"{header.n_slices} of {header.image_shape[0]} x {header.image_shape[1]}"
        acceleration = "unknown" if header.acceleration is None else f"{header.acceleration:.2f}"
        if header.views is None:
            sampling = [("slices", f"{size}, {header.coils} coil(s)"), ("voxel", place), ("acceleration", acceleration)]
        else:
            arc = "" if header.arc_deg is None else f" over {header.arc_deg:.5g} degrees"
            beam = f"{header.beam or 'unknown'} beam, {header.views} view(s){arc}"
            sampling = [("slices", size), ("voxel", place), ("views", beam)]
        facts = [
            ("format", header.format),
            *sampling,
            ("noise std", noise),
            ("origin", "simulated" if header.simulated else "measured"),
            ("suggested text", header.text or "none"),
        ]
        if header.description:
            facts.append(("description", header.description[:200]))
        return facts + [("warning", w) for w in header.warnings]

    def __repr__(self) -> str:
        """Show the header on a few lines."""
        return f"{type(self).__name__}(\n" + "".join(f"  {k}: {v}\n" for k, v in self._facts()) + ")"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self._facts()
        )
        return f"<table><caption><b>{html.escape(type(self).__name__)}</b></caption>{rows}</table>"


class _Battery:
    """Collects what a source promises and does not keep."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []

    def check(self, name: str, holds: bool, detail: object = "") -> None:
        if holds:
            self.passed.append(name)
        else:
            self.failed.append(f"{name} ({detail})" if detail != "" else name)

    def raises(self, name: str, error: type[Exception], call: Callable[[], object]) -> None:
        try:
            call()
        except error:
            self.passed.append(name)
        except Exception as other:
            self.failed.append(f"{name} (raised {type(other).__name__} instead of {error.__name__})")
        else:
            self.failed.append(f"{name} (nothing was raised)")


def validate_source(source: SliceSource) -> tuple[str, ...]:
    """Check everything a reader promises; return the names of the checks that passed.

    Reads the first and the last slice, works on pickled copies where it closes something, and leaves
    ``source`` open.

    Raises
    ------
    FormatError
        Lists every promise that is not kept.
    """
    battery = _Battery()
    battery.check("satisfies the SliceSource protocol", isinstance(source, SliceSource))
    if battery.failed or len(source) < 1:
        raise FormatError(f"expected a SliceSource with at least one slice, got {type(source).__name__}")
    path = getattr(source, "path", None)
    before = _fingerprint(path)
    _check_header(source, battery)
    for index in sorted({0, len(source) - 1}):
        _check_slice(source, index, battery)
    if not battery.failed:
        _check_indexing(source, battery)
        _check_pickle_and_close(source, battery)
    battery.check("the file is untouched", _fingerprint(path) == before)
    if battery.failed:
        raise FormatError(
            f"{type(source).__name__} breaks {len(battery.failed)} promise(s): " + "; ".join(battery.failed)
        )
    return tuple(battery.passed)


def _fingerprint(path: object) -> tuple[int, int, str] | None:
    if not isinstance(path, str | os.PathLike):
        return None
    file = Path(path)
    return file.stat().st_size, file.stat().st_mtime_ns, sha256_of(file)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _check_header(source: SliceSource, battery: _Battery) -> None:
    header = source.header
    battery.check(
        "header counts the slices", header.n_slices == len(source), f"{header.n_slices} != {len(source)}"
    )
    battery.check("header names its format", bool(header.format))
    battery.check(
        "header is readable as a dictionary", all(header[k] == getattr(header, k) for k in header.keys())
    )
    battery.check("header is plain JSON", _is_json(header.as_dict()))
    battery.check(
        "a simulated scan warns", not header.simulated or any("simulated" in w for w in header.warnings)
    )
    for name in ("__repr__", "_repr_html_"):
        text = str(getattr(source, name, str)())
        battery.check(f"{name} is short", 0 < len(text) < 6000, f"{len(text)} characters")


def _check_slice(source: SliceSource, index: int, battery: _Battery) -> None:
    try:
        measurement = source[index]
    except (TregMedError, IndexError) as error:
        battery.check(f"slice {index} can be read", False, f"{type(error).__name__}: {error}")
        return
    battery.check(
        f"slice {index} is a Measurement", isinstance(measurement, Measurement), type(measurement).__name__
    )
    if isinstance(measurement, Measurement):
        _check_measurement(source, measurement, index, battery)


def _check_measurement(source: SliceSource, m: Measurement, index: int, battery: _Battery) -> None:
    where = f"slice {index}: "
    battery.check(
        where + "image shape as in the header",
        tuple(m.operator.domain_shape) == tuple(source.header.image_shape),
    )
    battery.check(
        where + "data are contiguous single precision",
        m.y.dtype in (torch.complex64, torch.float32),
        m.y.dtype,
    )
    parts = torch.view_as_real(m.y.resolve_conj()) if m.y.is_complex() else m.y
    battery.check(where + "data are finite", bool(torch.isfinite(parts).all()))
    seen = m.operator.measured
    if seen is not None and m.y.is_complex():
        outside = parts[~seen.expand(m.y.shape)]
        zero = bool((outside == 0).all()) and not bool(torch.signbit(outside).any())
        battery.check(where + "unsampled entries are exactly +0", zero)
    battery.check(where + "noise level is known or None", m.noise_std is None or m.noise_std >= 0)
    image = m.operator.start(m.y)
    if image is not None:
        peak = float((image * m.scale).abs().max())
        battery.check(where + "scale brings the maximum to about 1", peak == 0 or 0.1 < peak < 10, f"{peak:.3g}")
    if m.target is not None:
        battery.check(where + "target is finite", bool(torch.isfinite(m.target.abs()).all()))
    facts = m.provenance
    battery.check(where + "provenance is plain JSON", _is_json(dict(facts)))
    missing = {"format", "input_sha256", "simulated", "warnings", "noise_std"} - set(facts)
    battery.check(where + "provenance is complete", not missing, sorted(missing))
    battery.check(where + "provenance repeats the header", facts.get("simulated") == source.header.simulated)
    if m.geometry is None:
        battery.check(where + "geometry is present", False)
        return
    battery.check(where + "geometry counts this slice", m.geometry.slice_index == index)
    shape = (*source.header.image_shape, len(source))
    battery.check(where + "geometry has the scan's shape", tuple(m.geometry.shape) == shape, m.geometry.shape)


def _check_indexing(source: SliceSource, battery: _Battery) -> None:
    n = len(source)
    battery.check("negative indices count from the end", torch.equal(source[-1].y, source[n - 1].y))
    battery.raises("index beyond the end is refused", IndexError, lambda: source[n])
    battery.raises("index before the start is refused", IndexError, lambda: source[-n - 1])
    battery.raises("an index must be a number", TypeError, lambda: source["0"])  # type: ignore[index]


def _check_pickle_and_close(source: SliceSource, battery: _Battery) -> None:
    # Our own object a moment ago, so nothing foreign is unpickled.
    copy: SliceSource = pickle.loads(pickle.dumps(source))  # noqa: S301
    same = torch.equal(copy[0].y, source[0].y) and copy[0].noise_std == source[0].noise_std
    battery.check("a pickled copy reads the same values", same and len(copy) == len(source))
    with copy as entered:
        battery.check("a context manager returns the source", entered is copy)
    battery.raises("a closed source refuses to read", ResourceError, lambda: copy[0])


def check_options(name: str, given: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Refuse options that a reader does not know.

    Raises
    ------
    ConfigError
        Names the unknown options and those that exist.
    """
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        known = ", ".join(allowed) or "none"
        raise ConfigError(f"the {name} reader has no option {', '.join(unknown)}; it has {known}")

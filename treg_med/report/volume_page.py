"""One reconstructed volume as a self-contained HTML page, made of finished outputs on the disk.

The page says what was measured, what was said, and what each of them contributed: every method beside the others, the
main result minus each of them, and how well each fits the data. Equal outputs give equal bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from nibabel.filebasedimages import ImageFileError

from treg_med.data.atomic import StagedFiles, check_writable_folder, safe_name, writing
from treg_med.data.orientation import choose_slice_axis, plane_of
from treg_med.data.safe_hdf5 import sha256_of
from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError
from treg_med.notice import RESEARCH_ONLY
from treg_med.report import volume_figures as figures
from treg_med.report.volume_figures import RESIDUAL_HIGH, RESIDUAL_LOW, StoredVolume, Survey

__all__ = ["write_volume_page"]

# Warnings of some slices only could fill the page; the table of slices has them all.
_MOST_WARNINGS = 6
# Images of fewer pixels are enlarged on the page: their pixels stay squares.
_SMALL = 160
_NOT_SETTINGS = ("preset", "samples")


def write_volume_page(
    path: Path,
    sidecars: Sequence[Path],
    target: npt.NDArray[Any] | None = None,
    *,
    title: str,
    scratch: Path | None = None,
) -> None:
    """Write the page of one volume; an existing one is replaced once the new one is complete.

    Parameters
    ----------
    path
        HTML file to write, in an existing folder.
    sidecars
        JSON files of all methods, their volumes beside them: classical start, control, main result last.
    target
        Reference in the axes, shape and unit of the stored volumes.
    title
        Heading of the page.
    scratch
        Existing folder for what is unfinished, as in `StagedFiles`.

    Raises
    ------
    ConfigError
        If no sidecar is given, or two methods have one label.
    ResourceError
        If a file is missing or the folder cannot be written to.
    FormatError
        If a sidecar or volume is not what was written.
    GeometryError
        If volumes or the target do not fit together.
    NumericsError
        If a volume or the target holds NaN or Inf.
    """
    if not sidecars:
        raise ConfigError("expected the sidecar of at least one method, got none; pass the main result's last")
    results = [_Result.read(Path(sidecar)) for sidecar in sidecars]
    if len({result.label for result in results}) < len(results):
        raise ConfigError(
            f"expected methods of different labels, got {[result.label for result in results]}; label them apart"
        )
    page = _render(results, _checked(target, results), title)
    check_writable_folder(path.parent, scratch=scratch)
    with writing(f"writing {path.name!r}"), StagedFiles(overwrite=True, scratch=scratch) as staged:
        staged.path(path).write_text(page, encoding="utf-8")
        staged.commit()


@dataclass(frozen=True, eq=False)
class _Result:
    """One method's sidecar and the volume beside it."""

    name: str
    facts: Mapping[str, Any]
    image: Any

    @classmethod
    def read(cls, sidecar: Path) -> _Result:
        try:
            facts = json.loads(sidecar.read_text(encoding="utf-8"))
            output = facts["outputs"]["magnitude"]
            path = sidecar.parent / safe_name(output["file"])
            if output.get("sha256") not in (None, sha256_of(path)):
                raise ValueError(f"{path.name!r} has another checksum than it states")
            # An open file goes on where the last slice ended; a compressed one would start again for each.
            image = nib.load(path, keep_file_open=True)
            if len(image.shape) != 3 or not all(isinstance(entry, dict) for entry in facts.get("slices") or []):
                raise ValueError(f"it lists no slices of a volume of shape {tuple(image.shape)}")
        except OSError as error:
            raise ResourceError(f"expected a sidecar and the volume it names, got {error}; finish the run") from error
        except (ValueError, KeyError, TypeError, AttributeError, ImageFileError) as error:
            raise FormatError(
                f"expected the sidecar of a finished volume, got {sidecar.name!r} ({error}); reconstruct it again"
            ) from error
        return cls(sidecar.name, facts, image)

    @cached_property
    def label(self) -> str:
        """Name of the method."""
        return str(_of(self.facts, "method").get("label") or self.name.removesuffix(".json"))

    @cached_property
    def axis(self) -> int:
        """Stored axis across the slices."""
        shape, slices = self.image.shape, self.facts.get("slices") or []
        fitting = [axis for axis in range(3) if not slices or shape[axis] == len(slices)]
        if not fitting:
            raise FormatError(f"{self.name!r} lists {len(slices)} slices, and its volume has the shape {tuple(shape)}")
        # Sidecars of older versions do not say.
        stated = _of(self.facts, "geometry").get("slice_axis")
        likely = (stated, choose_slice_axis(self.image.affine), *fitting[::-1])
        return next(axis for axis in likely if axis in fitting)

    @cached_property
    def slices(self) -> list[Mapping[str, Any]]:
        """Facts of every slice; empty ones where the sidecar has none."""
        return self.facts.get("slices") or [{"slice": i} for i in range(self.image.shape[self.axis])]

    @cached_property
    def numbers(self) -> list[int]:
        """Numbers of the slices in the scan."""
        return [int(entry.get("slice", position)) for position, entry in enumerate(self.slices)]

    @cached_property
    def residuals(self) -> list[float | None]:
        """Residual of each slice in noise units."""
        return [entry.get("residual_noise_units") for entry in self.slices]

    @cached_property
    def domain(self) -> tuple[str, list[int]] | None:
        """Range of the distances from the prior's domain and the slices above the limit; None where none is known."""
        entries = zip(self.numbers, self.slices, strict=True)
        known = [(n, d) for n, entry in entries if (d := entry.get("domain_distance")) is not None]
        if not known:
            return None
        values = [d for _, d in known]
        return f"{min(values):.2f} to {max(values):.2f}", [n for n, d in known if d > 1]

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """Settings of the method; those that differ from slice to slice as a range."""
        names = dict.fromkeys(name for entry in self.slices for name in _of(entry, "settings"))
        every = {name: [_of(entry, "settings").get(name) for entry in self.slices] for name in names}
        return {name: _span(values) for name, values in every.items() if name not in _NOT_SETTINGS}

    @property
    def text(self) -> str:
        """What was said."""
        return str(self.facts.get("text") or "")

    @property
    def prior(self) -> Mapping[str, Any]:
        """Name and hash of the prior, None where none was used."""
        return {"name": None, "sha256": None} | dict(_of(self.facts, "prior"))

    @property
    def uses_prior(self) -> bool:
        return any(value is not None for value in self.prior.values())

    @property
    def is_control(self) -> bool:
        return self.settings.get("use_prior") == "no"

    def volume(self) -> StoredVolume:
        return StoredVolume.of_image(self.image, self.axis)


def _of(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of a sidecar that may be missing."""
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}


def _checked(target: npt.NDArray[Any] | None, results: Sequence[_Result]) -> StoredVolume | None:
    """Return the target as a volume; all results and it have to be of one scan."""
    main = results[-1]
    for other in results[:-1]:
        same = other.image.shape == main.image.shape and np.allclose(other.image.affine, main.image.affine, atol=1e-4)
        if not same or other.numbers != main.numbers or other.facts.get("unit") != main.facts.get("unit"):
            raise GeometryError(
                f"expected volumes of the same slices in one unit, got {other.name!r} beside {main.name!r}; "
                "put the methods of one scan on a page"
            )
    if target is None:
        return None
    if tuple(target.shape) != tuple(main.image.shape) or target.dtype.kind not in "fiu":
        raise GeometryError(
            f"expected a real target in the axes of the stored volume, {tuple(main.image.shape)}, got "
            f"{target.dtype} {tuple(target.shape)}; turn and cut it like the volume"
        )
    return StoredVolume(target, main.volume().geometry)


def _render(results: Sequence[_Result], target: StoredVolume | None, title: str) -> str:
    main = results[-1]
    volumes = [result.volume() for result in results]
    kept = figures.survey(volumes, target)
    hounsfield = main.facts.get("unit") == "HU"
    unit = "HU" if hounsfield else f"% of the maximum of {main.label}"
    factor = 1.0 if hounsfield or kept.peak <= 0 else 100 / kept.peak
    (height, width, _), (rows, columns, _) = volumes[-1].geometry.shape, volumes[-1].geometry.spacing_mm
    windows = figures.grey_windows(kept, main.facts.get("unit"))
    return _template().render(
        title=title,
        notice=RESEARCH_ONLY,
        results=results,
        main=main,
        others=results[:-1],
        meaning={result.label: _meaning(result, main) for result in results[:-1]},
        warnings=_warnings(results),
        source=_of(main.facts, "input"),
        noise=_span([entry.get("noise_std") for entry in main.slices]),
        geometry=volumes[-1].geometry,
        text_changes_tell=any(_same_but_text(other, main) for other in results[:-1]),
        plane=plane_of(main.image.affine, main.axis),
        edges=figures.edge_letters(volumes[-1].geometry),
        enlarged=max(height, width) < _SMALL,
        aspect=f"{width * columns / (height * rows):.4f}",
        unit=unit,
        mark="HU" if hounsfield else "%",
        windows=[_window(window, main.facts.get("unit")) for window in windows],
        montage=[(main.numbers[k], figures.grey_png(image, windows[0])) for k, image in kept.montage.items()],
        comparisons=figures.compared(kept, main.numbers, windows, factor),
        signed_colours=figures.SIGNED_COLOURS,
        contributions=figures.rms_rows(kept.differences, main.numbers, factor),
        errors=None if kept.errors is None else figures.rms_rows(kept.errors, main.numbers, factor),
        residual_chart=_chart(results),
        outside=[(result.label, *_outside(result)) for result in results],
        table=_slice_rows(results, kept, factor),
        settings=_settings_rows(results),
        recorded=json.dumps(main.facts.get("input", {}), ensure_ascii=False, indent=1),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("treg_med.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"png": "data:image/png;base64,{}".format, "short": _short}
    return environment.get_template("volume.html.j2")


def _meaning(other: _Result, main: _Result) -> str:
    """Say what the main result minus another one shows."""
    if other.is_control:
        return "what the prior added, its text with it: the other is the same pipeline without the prior"
    if _same_but_text(other, main):
        return f"what the words changed: the other was told “{other.text}”" if other.text else "what the words added"
    if main.uses_prior and not other.uses_prior:
        return "what the whole method changed of a classical result, which sees the data and no prior"
    return "where the two methods differ"


def _same_but_text(other: _Result, main: _Result) -> bool:
    alike = all(other.facts.get(key) == main.facts.get(key) for key in ("solver", "seed", "adapters"))
    same = alike and other.prior == main.prior and other.settings == main.settings
    return same and main.uses_prior and other.text != main.text


def _warnings(results: Sequence[_Result]) -> tuple[list[str], int]:
    """Return what to be warned of before looking, and how many more there are; equal but for numbers counts once."""
    total = len(results[-1].slices)
    texts: dict[str, dict[str, None]] = {}
    places: dict[str, dict[str, int]] = {}
    for result in results:
        whole = [*(result.facts.get("warnings") or ()), *(_of(result.facts, "input").get("warnings") or ())]
        by_slice = [list(entry.get("warnings") or ()) for entry in result.slices]
        for text in (*whole, *chain(*by_slice)):
            texts.setdefault(_kind(text), {})[text] = None
        for kind in {_kind(text): None for text in (*whole, *chain(*by_slice))}:
            # A warning of the volume that no slice has is one of all slices.
            count = sum(kind in map(_kind, entry) for entry in by_slice) or total
            places.setdefault(kind, {})[result.label] = count
    lasting: list[str] = []
    passing: list[str] = []
    for kind, found in places.items():
        first, *others = texts[kind]
        always = set(found.values()) == {total}
        where = "" if always and len(found) == len(results) else f"{_places(found, total)}: "
        line = f"{where}{first}{' (elsewhere with other numbers)' if others else ''}"
        (lasting if always else passing).append(line)
    return lasting + passing[:_MOST_WARNINGS], max(0, len(passing) - _MOST_WARNINGS)


def _kind(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", text)


def _places(found: Mapping[str, int], total: int) -> str:
    parts = [label if count == total else f"{label} in {count} of {total} slices" for label, count in found.items()]
    return ", ".join(parts)


def _window(window: tuple[float, float], unit: str | None) -> str:
    black, white = window
    return f"black {black:.4g}, white {white:.4g} {unit or 'raw units'}".replace("-", "−")


def _chart(results: Sequence[_Result]) -> str | None:
    known = {r.label: r.residuals for r in results if any(value is not None for value in r.residuals)}
    return figures.residual_chart(results[-1].numbers, known) if known else None


def _outside(result: _Result) -> tuple[str, list[int], list[int]]:
    """Return the mean residual, and the slices that lie above and below the band."""
    known = [(n, v) for n, v in zip(result.numbers, result.residuals, strict=True) if v is not None]
    mean = f"{np.mean([v for _, v in known]):.3f}" if known else "unknown"
    return mean, [n for n, v in known if v > RESIDUAL_HIGH], [n for n, v in known if v < RESIDUAL_LOW]


def _slice_rows(results: Sequence[_Result], kept: Survey, factor: float) -> list[dict[str, Any]]:
    facts = zip(*(result.slices for result in results), strict=True)
    warned = [dict.fromkeys(text for entry in row for text in entry.get("warnings") or ()) for row in facts]
    # What is said of all slices stands above.
    everywhere = set(warned[0]).intersection(*warned)
    return [
        {
            "slice": number,
            "residuals": ["–" if r.residuals[k] is None else f"{r.residuals[k]:.3f}" for r in results],
            "differences": [figures.rms_text(factor * v) for v in kept.differences[:, k]],
            "errors": [] if kept.errors is None else [figures.rms_text(factor * v) for v in kept.errors[:, k]],
            "warnings": [warning for warning in warned[k] if warning not in everywhere],
        }
        for k, number in enumerate(results[-1].numbers)
    ]


def _settings_rows(results: Sequence[_Result]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for result in results for name in result.settings)
    return [(name, [result.settings.get(name, "") for result in results]) for name in names]


def _span(values: Iterable[Any]) -> str:
    """Return the value that all share, else from the lowest to the highest."""
    every = list(values)
    plain = list(dict.fromkeys(_plain(value) for value in every))
    if len(plain) == 1:
        return plain[0]
    numbers = [v for v in every if isinstance(v, int | float) and not isinstance(v, bool)]
    return f"{min(numbers):.4g} to {max(numbers):.4g}" if len(numbers) == len(every) else "differs by slice"


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(sha256: str | None) -> str:
    return "none" if not sha256 else sha256[:12]

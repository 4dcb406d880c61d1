"""The images of one case: its scan, their reference, and what was made of it, here or elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from treg_med.data import open_scan
from treg_med.data.nifti import NiftiVolume
from treg_med.data.safe_hdf5 import check_readable_file, sha256_of
from treg_med.data.source import ScanReader
from treg_med.errors import FormatError, GeometryError, ResourceError
from treg_med.evaluation.pairing import mirrored_axes
from treg_med.evaluation.plan import Case, Variant
from treg_med.evaluation.references import Reference, read_reference
from treg_med.evaluation.region_scores import Region, read_regions
from treg_med.evaluation.regions import PROTOCOL, VERSION
from treg_med.evaluation.slice_grid import Images
from treg_med.runs.names import output_name
from treg_med.runs.slice_range import parse_slices

__all__ = ["CaseImages", "StoredVolume"]


@dataclass(frozen=True)
class StoredVolume:
    """A volume to score.

    Parameters
    ----------
    image
        Its file.
    key
        Changes whenever its scores would.
    run_hash
        Of the reconstruction; the checksum of a file from elsewhere.
    residuals
        In noise units by slice number, where they are known.
    """

    image: Path
    key: str
    run_hash: str
    residuals: Mapping[int, float | None]


class CaseImages:
    """A context in which the scan of a case is open; it is opened when it is first needed.

    Parameters
    ----------
    case
        The case.
    outputs
        Sidecars of what was reconstructed, by label; None to look where they have to be.
    """

    def __init__(self, case: Case, outputs: Mapping[str, Path] | None = None) -> None:
        self._case = case
        self._given = outputs
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the scan."""
        self._stack.close()

    @cached_property
    def reference(self) -> Reference:
        """The true images; the errors are those of `read_reference` and of `open_scan`."""
        indices = parse_slices(self._case.slices, len(self._scan))
        return read_reference(self._scan, indices, self._case.scan.target)

    @cached_property
    def regions(self) -> list[Region]:
        """The regions of the reference's slices; the errors are those of `read_regions`."""
        return read_regions(self._scan, self._case.scan, self.reference.grid)

    @cached_property
    def region_key(self) -> str:
        """What the scores in regions depend on beside the images: changes whenever they would."""
        mask, boxes = self._case.scan.mask, self._case.scan.boxes
        return _key(f"{PROTOCOL} {VERSION}", "" if mask is None else sha256_of(check_readable_file(mask)), repr(boxes))

    @cached_property
    def _scan(self) -> ScanReader:
        return self._stack.enter_context(open_scan(self._case.scan.path, **self._case.reader))

    @cached_property
    def _target_identity(self) -> str:
        """What the target of a reconstruction depends on beside what its run hash covers."""
        return "" if self._case.scan.target is None else sha256_of(self._case.scan.target)

    @cached_property
    def _outputs(self) -> Mapping[str, Path]:
        if self._given is not None:
            return self._given
        job = self._case.job
        if job is None or not isinstance(job.methods, tuple):
            return {}
        name = output_name(job.name or job.input.name, self._scan.header.words)
        return {method.label: job.out / name.folder / f"{name.stem(method.label)}.json" for method in job.methods}

    def stored(self, variant: Variant) -> StoredVolume:
        """Return the file of a variant.

        Raises
        ------
        ResourceError, FormatError
            If it was not made, or its sidecar is not what it should be.
        """
        prediction = self._case.predictions.get(variant.label)
        if prediction is not None:
            return self._made_elsewhere(prediction)
        sidecar = self._outputs.get(variant.label)
        if sidecar is None or not sidecar.is_file():
            raise ResourceError(
                f"expected a reconstruction of {self._case.scan.path.name!r} by {variant.label!r}, got none; run the "
                "evaluation without --rescore"
            )
        try:
            facts = json.loads(sidecar.read_text(encoding="utf-8"))
            image = sidecar.with_name(facts["outputs"]["magnitude"]["file"])
            residuals = {int(entry["slice"]): entry["residual_noise_units"] for entry in facts["slices"]}
            run_hash = str(facts["run_hash"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"expected a sidecar of this toolkit, got {sidecar.name!r} ({type(error).__name__}: {error}); remove "
                "it and run again"
            ) from error
        return StoredVolume(image, _key(run_hash, self._target_identity), run_hash, residuals)

    def _made_elsewhere(self, prediction: Path) -> StoredVolume:
        identity = sha256_of(prediction)
        scan = self._scan.sha256 if self._case.scan.target is None else ""
        how = json.dumps([dict(self._case.reader), self._case.slices], sort_keys=True, default=str)
        return StoredVolume(prediction, _key(identity, self._target_identity, scan, how), identity, {})

    def images(self, variant: Variant, stored: StoredVolume) -> Images:
        """Return the images (slices, H, W) of a variant on the grid of the reference; they may hold NaN.

        Raises
        ------
        GeometryError
            If they are on another grid, or mirrored.
        TregMedError
            As in `NiftiVolume.read`.
        """
        volume = NiftiVolume.read(stored.image, finite=False)
        images = self.reference.grid.slices_of(volume, stored.image.name)
        if variant.label in self._case.predictions or self._case.scan.target is not None:
            _refuse_mirrored(images, self.reference, stored.image.name)
        return images


def _key(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _refuse_mirrored(images: Images, reference: Reference, name: str) -> None:
    """Ask the images themselves: headers of other programs have been wrong."""
    axes = mirrored_axes(images, reference.images)
    if axes:
        along = " and ".join(("the order of slices", "up-down", "left-right")[axis] for axis in axes)
        raise GeometryError(
            f"{name!r} is mirrored against its target along {along}: it agrees far better when flipped, although the "
            "headers do not say so; flip it, or repair the program that wrote it"
        )

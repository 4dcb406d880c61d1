"""The source battery: register one case, inherit every test of `SourceConformance`.

A case writes a small file into a folder and opens it. `validate_source` does the checking; the class adds
what needs the file.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.ct_files import write_exchange, write_hounsfield, write_htc, write_lodopab, write_sinogram
from treg_med.data import open_scan, simulate_scan, validate_source
from treg_med.data.phantoms import phantom_volume, write_fastmri, write_nifti, write_raw_kspace
from treg_med.data.simulate_ct import simulate_ct_scan
from treg_med.data.source import ScanReader


@dataclass(frozen=True)
class SourceCase:
    """One kind of scan: ``open`` writes it into the folder and opens it."""

    name: str
    open: Callable[[Path], ScanReader]


def _raw(folder: Path, **settings: object) -> ScanReader:
    write_raw_kspace(folder / "raw.h5", **settings)
    return open_scan(folder / "raw.h5")


def _fastmri(folder: Path, options: dict[str, object] | None = None, **settings: object) -> ScanReader:
    write_fastmri(folder / "file.h5", **settings)
    return open_scan(folder / "file.h5", **(options or {}))


def _nifti(folder: Path, name: str = "volume.nii.gz", version: int = 1, **options: object) -> ScanReader:
    write_nifti(folder / name, phantom_volume((40, 36), 3), axes="LPS", version=version)
    return open_scan(folder / name, **options)


def _simulated(folder: Path, **settings: object) -> ScanReader:
    write_nifti(folder / "volume.nii", phantom_volume((40, 36), 4))
    return open_scan(simulate_scan(folder / "volume.nii", folder / "scan.h5", **settings))


def _hounsfield(folder: Path, **options: object) -> ScanReader:
    write_hounsfield(folder / "chest.nii.gz")
    return open_scan(folder / "chest.nii.gz", **options)


def _simulated_ct(folder: Path, **settings: object) -> ScanReader:
    write_hounsfield(folder / "chest.nii.gz")
    return open_scan(simulate_ct_scan(folder / "chest.nii.gz", folder / "scan.h5", **settings))


def _lodopab(folder: Path, **options: object) -> ScanReader:
    observation, truth = write_lodopab(folder)
    return open_scan(observation, truth=truth, **options)


SOURCE_CASES: list[SourceCase] = [
    SourceCase("raw-single-full", lambda d: _raw(d, noise=0.01)),
    SourceCase("raw-single-columns", lambda d: _raw(d, acceleration=3.0, noise=0.01)),
    SourceCase("raw-inferred-mask", lambda d: _raw(d, acceleration=2.0, noise=0.01, with_mask=False)),
    SourceCase("raw-coils", lambda d: _raw(d, coils=3, acceleration=2.0, noise=0.01)),
    SourceCase("raw-odd", lambda d: _raw(d, shape=(33, 27), n_slices=3, noise=0.01)),
    SourceCase("fastmri-single", lambda d: _fastmri(d)),
    SourceCase("fastmri-coils", lambda d: _fastmri(d, coils=3)),
    SourceCase("fastmri-test-mask", lambda d: _fastmri(d, mask=(np.arange(44) % 3 == 1))),
    SourceCase(
        "fastmri-undersampled", lambda d: _fastmri(d, {"acceleration": 2.0, "mask": "equispaced"}, coils=2)
    ),
    SourceCase("nifti", lambda d: _nifti(d)),
    SourceCase(
        "nifti-2-coils", lambda d: _nifti(d, "volume.nii", 2, coils=3, mask="poisson-disc", acceleration=2.0)
    ),
    SourceCase("nifti-sagittal", lambda d: _nifti(d, slice_axis=0, mask="gaussian-1d", noise=0.0)),
    SourceCase("simulated", lambda d: _simulated(d, coils=2, acceleration=3.0, slices=slice(1, 4))),
    SourceCase("ct-counts", lambda d: open_scan(write_sinogram(d / "a.h5"))),
    SourceCase("ct-line-integrals", lambda d: open_scan(write_sinogram(d / "a.h5", kind="sinogram"), views=30)),
    SourceCase("ct-exchange", lambda d: open_scan(write_exchange(d / "a.h5"))),
    SourceCase("ct-htc2022", lambda d: open_scan(write_htc(d / "a.h5"), arc=90.0, start=300.0)),
    SourceCase("ct-lodopab", lambda d: _lodopab(d, views=40)),
    SourceCase("ct-volume", lambda d: _hounsfield(d, views=20)),
    SourceCase("ct-volume-fan", lambda d: _hounsfield(d, views=30, beam="fan", photons=None)),
    SourceCase("ct-simulated", lambda d: _simulated_ct(d, views=24, electronic_std=3.0)),
    SourceCase("simulated-noise-free", lambda d: _simulated(d, acceleration=1.0, noise=0.0, phase="none")),
]


def pytest_source_cases(cases: list[SourceCase]) -> pytest.MarkDecorator:
    """Parametrise a class or test over the cases."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def _digest_of(source: ScanReader) -> str:
    return hashlib.sha256(source[0].y.numpy().tobytes()).hexdigest()


class SourceConformance:
    """What every reader must do; subclass and parametrise with `pytest_source_cases`."""

    def test_validate_source_passes(self, case: SourceCase, tmp_path: Path) -> None:
        with case.open(tmp_path) as source:
            assert len(validate_source(source)) >= 28

    def test_a_slice_does_not_depend_on_the_order_of_reading(self, case: SourceCase, tmp_path: Path) -> None:
        with case.open(tmp_path) as source:
            forward = [m.y for m in source]
            with type(source)(source.path, **source._options) as again:
                backward = [again[i].y for i in reversed(range(len(again)))][::-1]
            assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))

    def test_residual_of_the_target_is_the_noise(self, case: SourceCase, tmp_path: Path) -> None:
        with case.open(tmp_path) as source:
            m = source[0]
        if m.target is None or not m.target.is_complex() or not m.simulated:
            pytest.skip("only a simulated target is the truth")
        error = (
            torch.linalg.vector_norm(m.operator(m.target) - m.y)
            / (m.operator.mask.sum() * m.y.shape[0]).sqrt()
        )
        assert m.noise_std is not None
        assert float(error) == pytest.approx(m.noise_std, rel=0.15, abs=1e-5)

    def test_a_pickled_source_works_in_another_folder(
        self, case: SourceCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pickle

        with case.open(tmp_path) as source:
            stored, here = pickle.dumps(source), _digest_of(source)
        assert len(stored) < 4000, "a source pickles its path, not its data"
        monkeypatch.chdir(os.sep)
        with pickle.loads(stored) as copy:  # noqa: S301 - our own bytes
            assert _digest_of(copy) == here


def fork_digest(source: ScanReader) -> str:
    """Return the digest of the first slice as a forked worker reads it."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_digest_of, (source,))

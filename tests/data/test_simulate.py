"""Simulated scans: what was done is stored, the noise is as asked for, the file is whole or absent."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from treg_med.data import MASK_KINDS, open_scan, simulate_scan
from treg_med.data.phantoms import phantom_volume, write_nifti, write_raw_kspace
from treg_med.data.simulation import KspaceSimulation
from treg_med.errors import ConfigError, FormatError, NumericsError, ResourceError

VOLUME = phantom_volume((32, 28), 3)


def test_the_file_says_everything_that_was_done(tmp_path: Path) -> None:
    write_nifti(tmp_path / "brain_T1w.nii", 50 * VOLUME)
    out = simulate_scan(
        tmp_path / "brain_T1w.nii",
        tmp_path / "o.h5",
        acceleration=2.0,
        mask="gaussian-1d",
        coils=3,
        noise=0.02,
        seed=9,
    )
    with h5py.File(out) as file:
        assert file["kspace"].shape == (3, 3, 32, 28)
        assert file.attrs["simulated"]
        assert "research use only" in file.attrs["notice"]
    with (
        open_scan(out) as scan,
        open_scan(
            tmp_path / "brain_T1w.nii", acceleration=2.0, mask="gaussian-1d", coils=3, noise=0.02, seed=9
        ) as direct,
    ):
        assert scan.header.text == direct.header.text == "axial T1-weighted brain MRI"
        assert scan.header.simulated
        assert scan.header.warnings == direct.header.warnings
        for m, d in zip(scan, direct, strict=True):
            assert torch.equal(m.y, d.y)
            assert torch.equal(m.operator.mask, d.operator.mask)
            assert torch.equal(m.operator.sensitivity_maps, d.operator.sensitivity_maps)
            assert torch.equal(m.target, d.target)
            assert m.noise_std == pytest.approx(d.noise_std)
            assert m.noise_std == pytest.approx(0.02 * 50 * float(VOLUME.max()), rel=1e-6)
            assert np.allclose(m.geometry.affine, d.geometry.affine)
            assert m.geometry.storage == d.geometry.storage
        operation = dict(scan.header.operations[0])
        assert operation.items() >= dict(direct.header.operations[0]).items()


def test_an_array_is_simulated_too(tmp_path: Path) -> None:
    for name, source in (("tensor", VOLUME), ("array", VOLUME.numpy()), ("double", VOLUME.double())):
        with open_scan(simulate_scan(source, tmp_path / f"{name}.h5", acceleration=1.0, noise=0.0)) as scan:
            assert len(scan) == 3
            assert torch.allclose(scan[2].target.abs(), VOLUME[2], atol=1e-6)
            assert any("unknown geometry" in w for w in scan.header.warnings)
    with open_scan(simulate_scan(VOLUME[0], tmp_path / "one.h5")) as scan:
        assert len(scan) == 1


def test_a_slice_does_not_depend_on_the_others(tmp_path: Path) -> None:
    whole = simulate_scan(VOLUME, tmp_path / "a.h5", seed=2)
    part = simulate_scan(VOLUME, tmp_path / "b.h5", seed=2, slices=[2])
    with open_scan(whole) as a, open_scan(part) as b:
        assert torch.equal(a[2].y, b[0].y)


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_noise_level_and_acceleration_are_what_is_said(kind: str) -> None:
    simulation = KspaceSimulation(2.5, kind, 1, 0.05, seed=1)
    mask = simulation.make_mask((64, 64))
    assert mask.acceleration == pytest.approx(1.0 if kind == "full" else 2.5, rel=0.05)
    image = phantom_volume((64, 64), 1)[0]
    result = simulation.slice(image, 0, mask, peak=2.0)
    clean = KspaceSimulation(2.5, kind, 1, 0.0, seed=1).slice(image, 0, mask, peak=2.0)
    noise = (result.kspace - clean.kspace)[:, mask.mask]
    assert float(noise.abs().square().mean().sqrt()) == pytest.approx(0.1, rel=0.05)
    assert not result.kspace[:, ~mask.mask].any()


def test_the_phase_is_smooth_and_optional() -> None:
    image = phantom_volume((32, 32), 1)[0]
    smooth = KspaceSimulation(phase="smooth")
    target = smooth.slice(image, 0, smooth.make_mask((32, 32)), 1.0).target
    assert torch.allclose(target.abs(), image, atol=1e-6)
    inside = image > 0.2
    angles = target[inside].angle()
    assert float(angles.std()) > 0.1
    real = KspaceSimulation(phase="none")
    assert not real.slice(image, 0, real.make_mask((32, 32)), 1.0).target.imag.any()


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "o.h5").write_bytes(b"precious")
    with pytest.raises(ResourceError, match="exists"):
        simulate_scan(VOLUME, tmp_path / "o.h5")
    assert (tmp_path / "o.h5").read_bytes() == b"precious"
    simulate_scan(VOLUME, tmp_path / "o.h5", overwrite=True)
    with open_scan(tmp_path / "o.h5") as scan:
        assert len(scan) == 3


def test_a_failure_leaves_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o.h5").write_bytes(b"precious")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KspaceSimulation, "slice", fail)
    with pytest.raises(KeyboardInterrupt):
        simulate_scan(VOLUME, tmp_path / "o.h5", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["o.h5"]
    assert (tmp_path / "o.h5").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("source", "options", "error"),
    [
        (torch.ones(4, 4, dtype=torch.complex64), {}, FormatError),
        (torch.ones(4), {}, FormatError),
        (torch.ones(0, 4, 4), {}, FormatError),
        (torch.full((4, 4), float("nan")), {}, NumericsError),
        (torch.zeros(16, 16), {}, NumericsError),
        (VOLUME, {"slices": [3]}, ConfigError),
        (VOLUME, {"slices": slice(3, 3)}, ConfigError),
        (VOLUME, {"mask": "spiral"}, ConfigError),
        (VOLUME, {"acceleration": 0.1}, ConfigError),
        ("missing.nii", {}, ResourceError),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    tmp_path: Path, source: object, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        simulate_scan(source, tmp_path / "o.h5", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_only_magnitudes_are_simulated(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5")
    with pytest.raises(FormatError, match="NIfTI"):
        simulate_scan(tmp_path / "a.h5", tmp_path / "o.h5")


@pytest.mark.parametrize("out", ["missing/o.h5", ".", "a/../../o .h5"])
def test_a_bad_target_is_refused(tmp_path: Path, out: str) -> None:
    with pytest.raises((ResourceError, ConfigError)):
        simulate_scan(VOLUME, tmp_path / out)
    assert not list(tmp_path.iterdir())

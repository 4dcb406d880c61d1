"""The writer: complete provenance, nothing half-written, nothing lost, no name that leaves the folder."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from treg_med.data import (
    RESEARCH_ONLY,
    Measurement,
    Reconstruction,
    VolumeWriter,
    is_complete,
    open_scan,
    software_versions,
)
from treg_med.data.atomic import StagedFiles, check_writable_folder, safe_name
from treg_med.data.phantoms import phantom_volume, write_nifti
from treg_med.data.writer import is_reconstruction
from treg_med.errors import ConfigError, GeometryError, NumericsError, ResourceError


@pytest.fixture
def measurement(tmp_path: Path) -> Measurement:
    folder = tmp_path / "in"
    folder.mkdir()
    write_nifti(folder / "a.nii", phantom_volume((24, 20), 1))
    with open_scan(folder / "a.nii", acceleration=2.0) as scan:
        return scan[0]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def _rec(m: Measurement, **changes: object) -> Reconstruction:
    facts = {
        "residual": 1.02,
        "nfe": 8,
        "seconds": 0.5,
        "peak_memory_mb": 12.0,
        "solver": "treg",
        "text": "axial brain MRI",
        "seed": 5,
    }
    settings = {
        "settings": {"steps": 4, "weights": torch.ones(2)},
        "warnings": ("a warning",),
        "measurement": m,
    }
    return Reconstruction(m.operator.adjoint(m.y), **(facts | settings | changes))


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_long_array_among_the_settings_is_recorded_by_its_checksum(measurement: Measurement, out: Path) -> None:
    region = torch.eye(64)
    with VolumeWriter(out, "scan") as w:
        w.add(_rec(measurement, settings={"guidance_scale": {"scale": 2.0, "region": region}}))
    assert w.sidecar_path.stat().st_size < 20_000
    recorded = json.loads(w.sidecar_path.read_text())["slices"][0]["settings"]["guidance_scale"]["region"]
    assert recorded == {
        "shape": [64, 64],
        "type": "float32",
        "sha256": hashlib.sha256(region.numpy().tobytes()).hexdigest(),
    }


def test_the_sidecar_has_the_full_provenance(measurement: Measurement, out: Path) -> None:
    with VolumeWriter(
        out,
        "scan",
        phase=True,
        prior_sha256="ab" * 32,
        prior_name="default",
        extra={"run": {"x": np.float32(2)}},
    ) as w:
        w.add(_rec(measurement))
    assert _names(out) == ["scan.json", "scan.nii.gz", "scan_phase.nii.gz"]
    facts = json.loads(w.sidecar_path.read_text())
    assert facts["notice"] == RESEARCH_ONLY
    assert facts["input"]["input_sha256"] == measurement.provenance["input_sha256"]
    assert facts["input"]["simulated"] is True
    assert facts["input"]["acceleration"] == measurement.operator.acceleration
    assert facts["input"]["mask"]["columns"] == measurement.operator.mask[0].nonzero().flatten().tolist()
    assert facts["prior"] == {"name": "default", "sha256": "ab" * 32}
    assert (facts["text"], facts["seed"], facts["solver"]) == ("axial brain MRI", 5, ["treg"])
    assert facts["residual_noise_units"] == {"mean": 1.02, "max": 1.02}
    assert not {"seconds", "peak_memory_mb"} & (facts.keys() | facts["slices"][0].keys())
    assert facts["slices"][0]["noise_std"] == measurement.noise_std
    assert facts["slices"][0]["settings"] == {"steps": 4, "weights": [1.0, 1.0]}
    assert any("inverse crime" in w for w in facts["warnings"])
    assert "a warning" in facts["warnings"]
    assert facts["run"] == {"x": 2.0}
    assert {"python", "torch", "numpy", "nibabel", "h5py"} <= set(facts["versions"])
    assert is_complete(w.sidecar_path)


def test_magnitude_and_phase(measurement: Measurement, out: Path) -> None:
    rec = _rec(measurement)
    with VolumeWriter(out, "scan", phase=True) as w:
        w.add(rec)
    magnitude, phase = nib.load(w.image_path), nib.load(w.phase_path)
    assert magnitude.get_data_dtype() == np.float32
    values = magnitude.get_fdata() * np.exp(1j * phase.get_fdata())
    # RAS storage: the first axis runs to the patient's right, which is on the left of the image, the second one up.
    assert np.allclose(values[::-1, ::-1, 0].T, rec.image.numpy(), atol=1e-5)
    assert b"research use only" in bytes(magnitude.header["descrip"])


def test_a_real_image_keeps_its_sign(out: Path) -> None:
    image = torch.linspace(-1000, 500, 30).reshape(5, 6)
    with VolumeWriter(out, "ct") as w:
        w.add(Reconstruction(image))
    assert nib.load(w.image_path).get_fdata().min() == -1000
    assert "unknown geometry" in w.sidecar_path.read_text()


def test_unknown_numbers_are_null(measurement: Measurement, out: Path) -> None:
    with VolumeWriter(out, "scan") as w:
        w.add(_rec(measurement, residual=float("nan"), seconds=float("inf")))
    facts = json.loads(w.sidecar_path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert facts["slices"][0]["residual_noise_units"] is None


def test_the_same_run_gives_the_same_bytes(measurement: Measurement, out: Path) -> None:
    for name, seconds in (("a", 0.5), ("b", 7.0)):
        (out / name).mkdir()
        with VolumeWriter(out / name, "scan") as w:
            w.add(_rec(measurement, seconds=seconds, peak_memory_mb=seconds))
    for end in (".nii.gz", ".json"):
        assert (out / "a" / f"scan{end}").read_bytes() == (out / "b" / f"scan{end}").read_bytes()


def test_an_image_of_ours_is_known_by_its_header(measurement: Measurement, out: Path) -> None:
    with VolumeWriter(out, "scan") as writer:
        writer.add(_rec(measurement))
    assert is_reconstruction(writer.image_path)
    whole = writer.image_path.read_bytes()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), out / "other.nii.gz")
    for name, content in (("cut", whole[:40]), ("text", b"precious"), ("empty", b""), ("gzip", gzip.compress(b"x"))):
        (out / f"{name}.nii.gz").write_bytes(content)
    others = [path for path in out.glob("*.nii.gz") if path != writer.image_path]
    assert len(others) == 5
    assert not any(is_reconstruction(path) for path in [*others, out / "missing.nii.gz", out])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_by_an_exception_leaves_nothing(
    measurement: Measurement, out: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), VolumeWriter(out, "scan") as w:
        w.add(_rec(measurement))
        raise error
    assert not _names(out)


def test_existing_outputs_are_kept_unless_told(measurement: Measurement, out: Path) -> None:
    for existing in ("scan.nii.gz", "scan.json"):
        (out / existing).write_text("precious")
        with pytest.raises(ResourceError, match="exists"):
            VolumeWriter(out, "scan")
        assert (out / existing).read_text() == "precious"
        (out / existing).unlink()
    (out / "scan.nii.gz").write_text("old")
    with VolumeWriter(out, "scan", overwrite=True) as w:
        w.add(_rec(measurement))
        assert (out / "scan.nii.gz").read_text() == "old"
    assert is_complete(w.sidecar_path)


def test_a_full_disk_loses_nothing(
    measurement: Measurement, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "scan.nii.gz").write_text("old")
    writer = VolumeWriter(out, "scan", overwrite=True)
    writer.add(_rec(measurement))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="space"):
        writer.close()
    assert _names(out) == ["scan.nii.gz"]
    assert (out / "scan.nii.gz").read_text() == "old"


def test_a_sidecar_that_cannot_be_written_leaves_no_image(
    measurement: Measurement, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = VolumeWriter(out, "scan")
    writer.add(_rec(measurement))
    monkeypatch.setattr(VolumeWriter, "_sidecar", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert not _names(out)


def test_the_sidecar_comes_last(measurement: Measurement, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    original = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (moved.append(Path(target).name), original(self, target))[1]
    )
    with VolumeWriter(out, "scan", phase=True) as w:
        w.add(_rec(measurement))
    assert moved == ["scan.nii.gz", "scan_phase.nii.gz", "scan.json"]


def _write_for_ever(folder: Path) -> None:
    torch.set_num_threads(1)
    image = torch.rand(64, 64)
    while True:
        with VolumeWriter(folder, "scan", overwrite=True) as w:
            w.add(Reconstruction(image))


@pytest.mark.slow
def test_a_killed_process_leaves_no_partial_file(out: Path) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(out,))
        process.start()
        time.sleep(0.02 + 0.1 * generator.random())
        process.kill()
        process.join()
        process.close()
        if (out / "scan.nii.gz").exists():
            gzip.decompress((out / "scan.nii.gz").read_bytes())
        if (out / "scan.json").exists():
            json.loads((out / "scan.json").read_text())
    assert (out / "scan.json").exists()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="create it"):
        VolumeWriter(tmp_path / "missing", "scan")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="name a folder"):
        VolumeWriter(tmp_path / "file", "scan")
    with pytest.raises(ResourceError):
        VolumeWriter("a\0b", "scan")


def test_a_folder_without_write_permission(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(ResourceError, match="writable"):
        VolumeWriter(out, "scan")


_HOSTILE = [
    "", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "a\0b", "a\nb", "..\\x", "C:x", "con", "NUL",
    "com1.txt", "~root", "-rf", ".hidden", "a" * 200, "a b", "ä", "a..b", "name.", "$(x)", "%2e%2e", "a:b",
    "a|b", "a*", "a?", "<x>", "'", '"', "\u202e", "a\tb", "//x",
]  # fmt: skip


@pytest.mark.parametrize("name", _HOSTILE, ids=range(len(_HOSTILE)))
def test_hostile_names_are_refused(out: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="output name"):
        VolumeWriter(out, name)
    assert not _names(out)
    assert _names(out.parent) == ["out"]


def test_sensible_names_are_fine() -> None:
    for name in ("scan", "sub-01_rec-treg_T2w", "a.b-c_d.1"):
        assert safe_name(name) == name


def test_a_symbolic_link_is_replaced_not_followed(tmp_path: Path, out: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (out / "scan.nii.gz").symlink_to(tmp_path / "outside")
    with VolumeWriter(out, "scan", overwrite=True) as w:
        w.add(Reconstruction(torch.rand(4, 4)))
    assert (tmp_path / "outside").read_text() == "precious"
    assert not (out / "scan.nii.gz").is_symlink()


def test_slices_that_do_not_fit_are_refused(measurement: Measurement, out: Path) -> None:
    writer = VolumeWriter(out, "scan")
    with pytest.raises(NumericsError, match="NaN"):
        writer.add(replace(_rec(measurement), image=torch.full((24, 20), float("nan"))))
    with pytest.raises(GeometryError, match="H, W"):
        writer.add(replace(_rec(measurement), image=torch.ones(2, 24, 20)))
    with pytest.raises(GeometryError, match="geometry"):
        writer.add(replace(_rec(measurement), image=torch.ones(20, 24)))
    writer.add(_rec(measurement))
    with pytest.raises(GeometryError, match="twice"):
        writer.add(_rec(measurement))
    with pytest.raises(GeometryError, match="shape"):
        writer.add(Reconstruction(torch.ones(5, 5)), index=1)
    with pytest.raises(ResourceError, match="at least one"):
        VolumeWriter(out, "empty").close()
    assert not _names(out)


def test_facts_that_are_not_plain_are_refused_before_the_work(out: Path) -> None:
    with pytest.raises(ConfigError, match="plain"):
        VolumeWriter(out, "scan", extra={"f": lambda: 0})


def test_completeness_is_checked_by_content(measurement: Measurement, out: Path) -> None:
    with VolumeWriter(out, "scan") as w:
        w.add(_rec(measurement))
    assert is_complete(w.sidecar_path)
    w.image_path.write_bytes(b"changed")
    assert not is_complete(w.sidecar_path)
    w.image_path.unlink()
    assert not is_complete(w.sidecar_path)
    assert not is_complete(out / "missing.json")
    w.sidecar_path.write_text('{"outputs": {"magnitude": {"file": "../in/a.nii", "sha256": ""}}}')
    assert not is_complete(w.sidecar_path)


def test_staged_files_come_together(tmp_path: Path) -> None:
    with StagedFiles() as staged:
        for name in ("a", "b"):
            staged.path(tmp_path / name).write_text(name)
        assert not {"a", "b"} & set(_names(tmp_path))
        staged.commit()
    assert _names(tmp_path) == ["a", "b"]


def test_versions_are_those_installed() -> None:
    assert software_versions()["torch"] == torch.__version__


def test_trying_whether_a_folder_can_be_written_to_leaves_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    before = (tmp_path / "out").stat().st_mtime_ns
    assert check_writable_folder(tmp_path / "out", scratch=tmp_path / "scratch") == tmp_path / "out"
    assert (tmp_path / "out").stat().st_mtime_ns == before
    check_writable_folder(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ResourceError, match="writable"):
        check_writable_folder(tmp_path / "out", scratch=tmp_path / "none")

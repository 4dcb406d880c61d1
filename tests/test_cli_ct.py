"""The command line on CT: what it says of a scan, what it simulates and writes, and what it does with bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

import treg_med as tm
from tests.data.ct_files import (
    parallel_sinogram,
    with_photons,
    write_exchange,
    write_hounsfield,
    write_htc,
    write_sinogram,
)
from tests.test_cli import assert_one_line, contents, outputs, run, tree_of
from treg_med.data import RESEARCH_ONLY, is_complete, open_scan, simulate_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.operators import MU_WATER

SIDE = 48
FAST = ("--solver", "fbp")
VIEWS, BINS, PIXEL, PHOTONS = 90, 95, 3.5, 1e5
FAN = {"geometry": "fan", "source_origin": 595.0, "origin_detector": 490.0, "detector": "flat"}


@pytest.fixture(scope="module")
def disc() -> Path:
    """The measured disc that comes with the package."""
    return tm.sample_path("htc2022_disc")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slices of water with lung and bone in air, in HU."""
    path = tmp_path_factory.mktemp("volume") / "chest.nii.gz"
    write_hounsfield(path, shape=(SIDE, SIDE, 3))
    return path


@pytest.fixture(scope="module")
def scan(volume: Path) -> Path:
    """Two slices of it, simulated."""
    out = volume.parent / "scan.h5"
    result = run("simulate", volume, "--out", out, "--views", 40, "--photons", 1e5, "--slices", "1:3")
    assert result.exit_code == 0, result.output
    return out


# --- check


def test_check_tells_what_of_the_disc_was_measured(disc: Path) -> None:
    facts = json.loads(run("check", disc, "--json").stdout)
    assert (facts["beam"], facts["views"], facts["arc_deg"]) == ("fan", 60, 360.0)
    assert "views every 6.0 degrees" in facts["missing"]
    assert facts["mu_water_per_mm"] is None
    assert facts["text"] is None
    assert facts["medical"] is False
    assert facts["next"].endswith("--solver pwls-tv")
    table = run("check", disc)
    flat = " ".join(table.stdout.replace("│", " ").split())
    for words in ("beam fan", "60 over 360 degrees", "not measured no direction is missing", "image in 1/mm",
                  "(estimated)", "origin measured", "suggested text none", RESEARCH_ONLY):  # fmt: skip
        assert words in flat
    assert "--text" not in flat
    assert "no medical prior applies" in table.stderr


def test_check_tells_what_a_limited_arc_leaves_out(disc: Path) -> None:
    result = run("check", disc, "--reader", "arc=60", "--reader", "start=30", "--reader", "image_size=64", "--json")
    facts = json.loads(result.stdout)
    assert (facts["views"], facts["arc_deg"]) == (10, pytest.approx(60.0))
    assert "missing wedge" in facts["missing"]


def test_check_suggests_the_text_of_a_volume(volume: Path) -> None:
    facts = json.loads(run("check", volume, "--json").stdout)
    assert facts["text"] == "Axial CT slice of the chest"
    assert facts["next"].endswith("--text 'Axial CT slice of the chest'")
    assert (facts["beam"], facts["views"], facts["simulated"]) == ("parallel", 60, True)
    assert facts["mu_water_per_mm"] == MU_WATER
    flat = " ".join(run("check", volume).stdout.replace("│", " ").split())
    assert "image in HU (water at 0.0192 / mm)" in flat
    assert "origin simulated" in flat


# --- simulate


def test_simulate_writes_a_scan_with_its_target(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.h5"
    options = ("--views", 20, "--photons", 2e4, "--electronic-std", 5, "--beam", "fan", "--arc", 220, "--slices", "::2")
    result = run("simulate", volume, "--out", out, *options, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["beam"], facts["views"], facts["n_slices"], facts["simulated"]) == ("fan", 20, 2, True)
    assert facts["arc_deg"] == pytest.approx(220.0)
    with open_scan(out) as simulated:
        m = simulated[1]
    assert m.target is not None
    assert float(m.target.max()) == pytest.approx(MU_WATER * 1.64, rel=0.01)
    assert m.weights is not None
    assert (m.provenance["photons"], m.mu_water) == (2e4, MU_WATER)
    plain = run("simulate", volume, "--out", out, "--overwrite", "--views", 10)
    assert "parallel beam, 10 views over 180 degrees" in plain.stdout
    assert "inverse crime" in plain.stderr


def test_no_photons_means_no_noise(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.h5"
    assert run("simulate", volume, "--out", out, "--photons", 0, "--views", 10).exit_code == 0
    with open_scan(out) as simulated:
        m = simulated[0]
    assert (m.noise_std, m.weights) == (0.0, None)


BAD_SIMULATIONS: dict[str, tuple[tuple[object, ...], str, int, str]] = {
    "options of MR": (("--coils", 4, "--noise", 0.1), "ConfigError", 2, "leave out --coils, --noise"),
    "acceleration": (("--acceleration", 4.0), "ConfigError", 2, "leave out --acceleration"),
    "no views": (("--views", 0), "ConfigError", 2, "views"),
    "arc": (("--arc", 500), "ConfigError", 2, "360 degrees"),
    "beam": (("--beam", "cone"), "ConfigError", 2, "parallel, fan"),
    "half a photon": (("--photons", 0.5), "ConfigError", 2, "--photons 0"),
    "readout noise alone": (("--photons", 0, "--electronic-std", 4), "ConfigError", 2, "photons"),
    "water in 1/cm": (("--mu-water", 0.192), "ConfigError", 2, "divide a value in 1/cm by 10"),
    "slices": (("--slices", 9), "GeometryError", 4, "between 0 and 2"),
}


@pytest.mark.parametrize("case", BAD_SIMULATIONS)
def test_bad_simulation(case: str, volume: Path, tmp_path: Path) -> None:
    options, name, code, words = BAD_SIMULATIONS[case]
    result = run("simulate", volume, "--out", tmp_path / "scan.h5", *options)
    assert_one_line(result, name, code)
    assert words in result.stderr
    assert contents(tmp_path) == {}


def test_negative_photons_are_a_usage_error(volume: Path, tmp_path: Path) -> None:
    result = run("simulate", volume, "--out", tmp_path / "scan.h5", "--photons", -1)
    assert result.exit_code == 2
    assert "--photons" in result.stderr
    assert contents(tmp_path) == {}


def test_options_of_ct_are_none_of_mr(tmp_path: Path) -> None:
    magnitude = tmp_path / "brain.nii"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 2)).astype(np.float32), np.eye(4)), magnitude)
    result = run("simulate", magnitude, "--out", tmp_path / "k.h5", "--views", 30, "--mu-water", 0.02)
    assert_one_line(result, "ConfigError", 2)
    assert "leave out --views, --mu-water" in result.stderr


def test_a_measurement_is_not_simulated_again(disc: Path, scan: Path, tmp_path: Path) -> None:
    for measured in (disc, scan):
        result = run("simulate", measured, "--out", tmp_path / "k.h5", "--views", 30)
        assert_one_line(result, "FormatError", 3)
        assert "--reader views=30" in result.stderr
    assert contents(tmp_path) == {}


# --- reconstruct


def _sidecar(folder: Path, subject: str, rec: str) -> Path:
    return folder / f"sub-{subject}" / "ct" / f"sub-{subject}_rec-{rec}_ct.json"


@pytest.mark.parametrize("solver", [("fbp",), ("pwls-tv", "--steps", 10)], ids=lambda s: s[0])
def test_reconstruct_writes_hounsfield_units_where_the_volume_lay(
    solver: tuple[object, ...], scan: Path, volume: Path, tmp_path: Path
) -> None:
    result = run("reconstruct", scan, "--out", tmp_path, "--solver", *solver)
    assert result.exit_code == 0, result.output
    assert "Axial CT slice of the chest" in result.stderr
    assert "inverse crime" in result.stderr
    rec = str(solver[0]).replace("-", "")
    assert outputs(tmp_path).keys() == tree_of("scan", rec, "ct", "ct")
    stem = tmp_path / "sub-scan" / "ct" / f"sub-scan_rec-{rec}_ct"
    assert is_complete(stem.with_suffix(".json"))
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    assert (sidecar["unit"], sidecar["mu_water_per_mm"]) == ("HU", MU_WATER)
    assert sidecar["input"]["views"] == 40
    assert sidecar["input"]["simulated"] is True
    before, after = nib.load(volume), nib.load(stem.with_suffix(".nii.gz"))
    assert np.allclose(after.affine[:3, :3], before.affine[:3, :3])
    assert np.allclose(after.affine[:3, 3] - before.affine[:3, 3], (0, 0, 8))
    truth, image = before.get_fdata()[..., 1:], after.get_fdata()
    inside = truth > 0
    assert np.median(image[inside]) == pytest.approx(np.median(truth[inside]), abs=15)
    assert np.median(image[truth < -900]) == pytest.approx(-1000, abs=30)


def test_the_disc_gets_no_prior_by_itself(disc: Path, tmp_path: Path) -> None:
    result = run("reconstruct", disc, "--out", tmp_path, "--steps", 3, "--reader", "image_size=64", "--json")
    assert result.exit_code == 0, result.output
    assert "no medical prior applies to this scan: solver pwls-tv" in result.stderr
    (printed,) = json.loads(result.stdout)["volumes"]
    assert [row["label"] for row in printed["results"]] == ["pwls-tv"]
    assert any("no medical prior applies" in note for note in printed["notes"])
    sidecar = json.loads(_sidecar(tmp_path, "htc2022disc", "pwlstv").read_text())
    assert sidecar["unit"] == "1/mm"
    assert sidecar["text"] is None
    assert sidecar["prior"] == {"name": None, "sha256": None}


def test_fewer_views_are_written_down(disc: Path, tmp_path: Path) -> None:
    reader = ("--reader", "arc=90", "--reader", "image_size=64")
    assert run("reconstruct", disc, "--out", tmp_path, *FAST, *reader).exit_code == 0
    sidecar = json.loads(_sidecar(tmp_path, "htc2022disc", "fbp").read_text())
    assert "missing wedge" in sidecar["input"]["missing"]
    assert {"views": 15, "of_views": 60}.items() <= sidecar["input"]["operations"][-1].items()
    result = run("reconstruct", disc, "--out", tmp_path / "more", *FAST, "--reader", "views=61")
    assert_one_line(result, "ConfigError", 2)
    assert outputs(tmp_path / "more") == {}


def test_a_method_of_ct_is_none_of_mr(tmp_path: Path) -> None:
    kspace = simulate_scan(phantom_volume((32, 32), 1), tmp_path / "kspace.h5", acceleration=2.0)
    for solver in ("fbp", "sirt"):
        result = run("reconstruct", kspace, "--out", tmp_path / "out", "--solver", solver)
        assert_one_line(result, "ConfigError", 2)
    assert outputs(tmp_path / "out") == {}


# --- bad input: an error with its fix, or a warning; nothing in silence


def _counts(view: int | None = None, bins: int | slice = slice(None), value: float = np.nan) -> np.ndarray:
    sinogram = parallel_sinogram(np.arange(VIEWS) * np.pi / VIEWS, BINS, PIXEL)
    values = with_photons(sinogram, PHOTONS)
    if view is not None:
        values[view, bins] = value
    return values


def _lines(view: int | None = None) -> np.ndarray:
    return -np.log(_counts(view) / PHOTONS)


def _sinogram(**settings: Any) -> Callable[[Path], Path]:
    return lambda folder: write_sinogram(folder / "scan.h5", **settings)


def _hounsfield(**settings: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_hounsfield(folder / "chest.nii", shape=(SIDE, SIDE, 3), **settings)
        return folder / "chest.nii"

    return make


def _exchange(**settings: Any) -> Callable[[Path], Path]:
    return lambda folder: write_exchange(folder / "scan.h5", **settings)


def _changed(make: Callable[[Path], Path], change: Callable[[h5py.File], None]) -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        path = make(folder)
        with h5py.File(path, "a") as file:
            change(file)
        return path

    return changed


def _volume(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = _hounsfield()(folder)
        values = np.asarray(nib.load(path).dataobj).astype(np.float32)
        nib.save(nib.Nifti1Image(change(values), np.diag([5.0, 5.0, 8.0, 1.0])), path)
        return path

    return make


def _with_nan(values: np.ndarray) -> np.ndarray:
    values[3, 3, 1] = np.nan
    return values


@dataclass(frozen=True)
class Bad:
    """A file, the error and exit code, and words of the message."""

    make: Callable[[Path], Path]
    error: str
    code: int
    words: str


DEGREES = np.arange(VIEWS) * 180 / VIEWS
REPEATED = np.where(np.arange(VIEWS) == 50, 10, np.arange(VIEWS)) * np.pi / VIEWS
BAD_FILES: dict[str, Bad] = {
    "degrees called rad": Bad(_sinogram(angles=DEGREES), "GeometryError", 4, "look like degrees"),
    "rad called degrees": Bad(
        _sinogram(angles=np.deg2rad(DEGREES), angle_units="deg"), "GeometryError", 4, "pass the unit 'rad'"
    ),
    "angles without unit": Bad(_sinogram(angle_units=None), "FormatError", 3, "'units' (rad or deg)"),
    "repeated angle": Bad(_sinogram(angles=REPEATED), "GeometryError", 4, "drop repeated views"),
    "no angles": Bad(_sinogram(datasets={"angles": None}), "FormatError", 3, "dataset 'angles'"),
    "NaN angle": Bad(
        _changed(_sinogram(), lambda f: f["angles"].__setitem__(3, np.nan)), "GeometryError", 4, "drop those views"
    ),
    "angles of other views": Bad(
        _sinogram(datasets={"counts": np.ones((2, 80, BINS))}), "GeometryError", 4, "one per view"
    ),
    "axes exchanged": Bad(
        _sinogram(datasets={"counts": np.ones((2, BINS, VIEWS))}), "GeometryError", 4, "(slice, views, bins)"
    ),
    "negative count": Bad(
        _sinogram(datasets={"counts": _counts(3, 4, -5.0)}), "FormatError", 3, "electronic_std"
    ),
    "no count at all": Bad(
        _sinogram(datasets={"counts": 0 * _counts()}), "FormatError", 3, "both in the same unit"
    ),
    "NaN view of counts": Bad(
        _sinogram(datasets={"counts": _counts(7)}), "NumericsError", 7, "(view, bin) (7, 0); export the scan again"
    ),
    "NaN view": Bad(
        _sinogram(kind="sinogram", datasets={"sinogram": _lines(7)}), "NumericsError", 7, "leave these views out"
    ),
    "counts called line integrals": Bad(
        _sinogram(kind="sinogram", datasets={"sinogram": _counts()}), "FormatError", 3, "dataset 'counts' beside 'i0'"
    ),
    "i0 of another scale": Bad(_sinogram(datasets={"i0": 1e3}), "FormatError", 3, "both in the same unit"),
    "i0 of nothing": Bad(_sinogram(datasets={"i0": 0.0}), "NumericsError", 7, "average the frames"),
    "distance in cm": Bad(_sinogram(changes={**FAN, "source_origin": 59.5}), "GeometryError", 4, "to be in cm"),
    "distance in m": Bad(
        _sinogram(changes={**FAN, "source_origin": 0.595, "origin_detector": 0.49}), "GeometryError", 4, "to be in m "
    ),
    "pixels in micrometres": Bad(
        _sinogram(changes={"pixel_size": 3500.0, "bin_size": 3500.0}), "GeometryError", 4, "divide it by 1000"
    ),
    "centre beyond the panel": Bad(_sinogram(changes={"centre": 200.0}), "GeometryError", 4, "give it in bins"),
    "distances exchanged": Bad(
        _changed(lambda d: write_htc(d / "a.h5"), lambda f: f.attrs.__setitem__("distanceSourceDetector", 300.0)),
        "GeometryError", 4, "exchange the two attributes",
    ),
    "no flat field": Bad(_exchange(leave_out=("data_white",)), "FormatError", 3, "exchange/data_white"),
    "no theta": Bad(_exchange(leave_out=("theta",)), "FormatError", 3, "exchange/theta"),
    "theta called rad": Bad(_exchange(views=60, units="rad"), "GeometryError", 4, "look like degrees"),
    "pixels not square": Bad(_hounsfield(spacing=(5.0, 4.0, 8.0)), "GeometryError", 4, "resample the volume"),
    "HU with NaN": Bad(_volume(_with_nan), "NumericsError", 7, "-1000, air"),
    "HU without slope": Bad(_volume(lambda v: (16 * v).astype(np.int16)), "FormatError", 3, "rescale"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case: str, tmp_path: Path) -> None:
    bad = BAD_FILES[case]
    file = bad.make(tmp_path)
    before = contents(tmp_path)
    for rest in (("check", file), ("reconstruct", file, "--out", tmp_path / "out", *FAST)):
        result = run(*rest)
        assert_one_line(result, bad.error, bad.code)
        assert bad.words in result.stderr
        assert outputs(tmp_path / "out") == {}
        assert {k: v for k, v in contents(tmp_path).items() if not k.startswith("out/")} == before


DOUBTFUL_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "views out of order": (
        _sinogram(angles=np.random.default_rng(0).permutation(VIEWS) * np.pi / VIEWS), "were sorted"
    ),
    "angles without unit": (_exchange(units=None), "without a unit, taken as deg"),
    "no dark field": (_exchange(leave_out=("data_dark",)), "dark signal was taken as 0"),
    "bins of unknown size": (_exchange(), "the attenuation is per bin; pass bin_size"),
    "zero counts": (_sinogram(datasets={"counts": _counts(3, slice(40, 60), 0.0)}), "photon starvation: 20 of"),
    "truncated": (_sinogram(bins=41), "truncated projections: 100 %"),
    "transmissions": (_sinogram(kind="sinogram", datasets={"sinogram": _counts() / PHOTONS}), "take -log of them"),
    "pixels in cm": (_sinogram(changes={"pixel_size": 0.35}), "in different units"),
    "lengths in m": (_sinogram(changes={"pixel_size": 0.0035, "bin_size": 0.0035}), "times that of water"),
    "lengths in mm called cm": (_sinogram(changes={"units": "1/cm"}), "wider than a scanner"),
    "padding of -2000": (_hounsfield(padding=-2000.0), "(lowest -2000), padding, set to air"),
    "padding of -3024": (_hounsfield(padding=-3024.0), "(lowest -3024), padding, set to air"),
    "16 bits wrapped": (_hounsfield(dtype="uint16"), "signed 16 bit read as unsigned: 65536 subtracted"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTFUL_FILES)
def test_what_is_used_all_the_same_is_said(case: str, tmp_path: Path) -> None:
    make, words = DOUBTFUL_FILES[case]
    file = make(tmp_path)
    result = run("check", file)
    assert result.exit_code == 0, result.output
    assert any(words in line for line in result.stderr.splitlines() if line.startswith("warning: "))


def test_what_is_said_stands_beside_the_image(tmp_path: Path) -> None:
    file = _hounsfield(padding=-3024.0)(tmp_path)
    result = run("reconstruct", file, "--out", tmp_path / "out", *FAST, "--reader", "views=20", "--slices", 0)
    assert result.exit_code == 0, result.output
    path = _sidecar(tmp_path / "out", "chest", "fbp")
    assert any("set to air" in warning for warning in json.loads(path.read_text())["warnings"])
    assert nib.load(path.with_suffix(".nii.gz")).get_fdata().min() > -1500


@pytest.mark.parametrize("angles", [np.deg2rad(DEGREES), np.deg2rad(DEGREES)[::-1].copy()], ids=["up", "down"])
def test_a_good_file_raises_no_doubt(angles: np.ndarray, tmp_path: Path) -> None:
    stderr = run("check", _sinogram(angles=angles)(tmp_path)).stderr
    assert [line for line in stderr.splitlines() if "unknown geometry" not in line] == []

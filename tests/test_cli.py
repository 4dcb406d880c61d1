"""The command line: what it writes, what it prints, and what it does with bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from treg_med.cli import app
from treg_med.cli.failures import EXIT_CODES
from treg_med.cli.options import parse_pairs, parse_settings, parse_slices
from treg_med.data import RESEARCH_ONLY, is_complete, open_scan, simulate_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.errors import ConfigError, GeometryError

SIZE = 32
FAST = ("--solver", "zero-filled")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slices of two-coil k-space with a target."""
    images = phantom_volume((SIZE, SIZE), 3)
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    return simulate_scan(images, path, coils=2, acceleration=2.0, seed=3)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small magnitude volume."""
    values = 100 * phantom_volume((SIZE, SIZE), 4).movedim(0, -1).numpy()
    path = tmp_path_factory.mktemp("volume") / "brain_T2w.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([2.0, 2.0, 4.0, 1.0])), path)
    return path


# --- what it writes


def test_reconstruct_writes_volume_sidecar_and_figure(scan: Path, tmp_path: Path) -> None:
    result = run(
        "reconstruct",
        scan,
        "--out",
        tmp_path,
        "--slices",
        "0:2",
        *FAST,
        "--text",
        "axial T2-weighted brain MRI",
    )
    assert result.exit_code == 0, result.output
    assert RESEARCH_ONLY in result.stdout
    assert set(contents(tmp_path)) == {f"scan_rec-zero-filled{end}" for end in (".nii.gz", ".json", ".png")}
    assert is_complete(tmp_path / "scan_rec-zero-filled.json")
    sidecar = json.loads((tmp_path / "scan_rec-zero-filled.json").read_text())
    assert sidecar["notice"] == RESEARCH_ONLY
    assert sidecar["text"] == "axial T2-weighted brain MRI"
    assert [entry["slice"] for entry in sidecar["slices"]] == [0, 1]
    assert sidecar["prior"] == {"name": None, "sha256": None}
    assert nib.load(tmp_path / "scan_rec-zero-filled.nii.gz").shape[2] == 2
    assert (tmp_path / "scan_rec-zero-filled.png").read_bytes().startswith(b"\x89PNG")


def test_learned_result_stands_beside_start_and_control(
    scan: Path,
    tmp_path: Path,
    tiny_prior_folder: Path,
) -> None:
    result = run(
        "reconstruct",
        scan,
        "-o",
        tmp_path,
        "--prior",
        tiny_prior_folder,
        "--steps",
        2,
        "--slices",
        1,
        "--json",
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [row["label"] for row in printed["results"]] == ["tv", "treg-control", "treg"]
    assert [row["nfe"] > 0 for row in printed["results"]] == [False, False, True]
    sidecar = json.loads((tmp_path / "scan_rec-treg.json").read_text())
    assert sidecar["prior"]["name"] == tiny_prior_folder.name
    assert sidecar["slices"][0]["settings"]["steps"] == 2
    control = json.loads((tmp_path / "scan_rec-treg-control.json").read_text())
    assert control["prior"]["name"] is None


def test_same_seed_gives_the_same_file_whatever_else_is_reconstructed(
    scan: Path,
    tmp_path: Path,
    tiny_prior_folder: Path,
) -> None:
    common = ("--prior", tiny_prior_folder, "--steps", 2, "--no-controls", "--text", "FLAIR")
    for name, slices in (("all", "0:3"), ("last", "2")):
        result = run("reconstruct", scan, "-o", tmp_path / name, *common, "--slices", slices)
        assert result.exit_code == 0, result.output
    volumes = [nib.load(tmp_path / name / "scan_rec-treg.nii.gz").get_fdata() for name in ("all", "last")]
    assert np.array_equal(volumes[0][..., 2], volumes[1][..., 0])


def test_text_of_the_header_is_used_and_said(volume: Path, tmp_path: Path) -> None:
    result = run("reconstruct", volume, "-o", tmp_path, *FAST, "--slices", "1", "--reader", "acceleration=2")
    assert result.exit_code == 0, result.output
    assert "T2-weighted brain MRI" in result.stderr
    assert "simulated" in result.stderr
    sidecar = json.loads((tmp_path / "brain_T2w_rec-zero-filled.json").read_text())
    assert "T2-weighted brain MRI" in sidecar["text"]
    assert sidecar["input"]["simulated"] is True


def test_simulate_stores_the_target(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "kspace.h5"
    result = run("simulate", volume, "--out", out, "--coils", 2, "--slices", "1:3", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["simulated"] is True
    with open_scan(out) as simulated:
        assert len(simulated) == 2
        assert simulated[0].target is not None
        assert simulated.header.coils == 2


def test_check_names_the_next_command(scan: Path) -> None:
    facts = json.loads(run("check", scan, "--json").stdout)
    assert facts["n_slices"] == 3
    assert facts["next"].startswith("treg-med reconstruct")
    assert "research use only" in run("check", scan).stdout.lower()


def test_info_lists_solvers() -> None:
    report = json.loads(run("info", "--json").stdout)
    assert {"zero-filled", "cg-sense", "tv", "wavelet", "treg"} <= set(report["solvers"])
    assert report["packages"]["torch"]
    assert "cpu" in report["devices"]


def test_help_names_every_exit_code_and_command() -> None:
    result = run("--help")
    flat = " ".join(result.stdout.split())
    assert all(f"{code} {meaning}" in flat for code, meaning in EXIT_CODES.items())
    assert all(name in flat for name in ("demo", "check", "reconstruct", "simulate", "info"))


# --- bad input: one line, one code, nothing lost


def _hdf5(path: Path, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


def _kspace(bad: complex | None = None) -> np.ndarray:
    values = np.ones((1, 2, 8, 8), np.complex64)
    if bad is not None:
        values[0, 1, 4, 4] = bad
    return values


def _text_file(path: Path) -> Path:
    path.write_text("this is not a scan")
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str, int]] = {
    "missing": (lambda d: d / "missing.h5", "ResourceError", 5),
    "folder": (lambda d: d, "ResourceError", 5),
    "wrong format": (lambda d: _text_file(d / "scan.h5"), "FormatError", 3),
    "no k-space": (lambda d: _hdf5(d / "a.h5", image=np.ones((4, 4))), "FormatError", 3),
    "empty k-space": (
        lambda d: _hdf5(d / "a.h5", kspace=np.ones((0, 2, 8, 8), np.complex64)),
        "FormatError",
        3,
    ),
    "zero k-space": (lambda d: _hdf5(d / "a.h5", kspace=0 * _kspace()), "FormatError", 3),
    "NaN": (lambda d: _hdf5(d / "a.h5", kspace=_kspace(np.nan)), "NumericsError", 7),
    "Inf": (lambda d: _hdf5(d / "a.h5", kspace=_kspace(np.inf)), "NumericsError", 7),
    "empty mask": (lambda d: _hdf5(d / "a.h5", kspace=_kspace(), mask=np.zeros((8, 8))), "FormatError", 3),
    "mask shape": (lambda d: _hdf5(d / "a.h5", kspace=_kspace(), mask=np.ones((8, 9))), "GeometryError", 4),
}


def assert_one_line(result: Result, name: str, code: int) -> None:
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith(f"{name}: ")
    assert sum(line.startswith(f"{name}: ") for line in lines) == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("command", ["check", "reconstruct"])
def test_bad_file(case: str, command: str, tmp_path: Path) -> None:
    make, name, code = BAD_FILES[case]
    file = make(tmp_path)
    before = contents(tmp_path)
    rest = () if command == "check" else ("--out", tmp_path / "out", *FAST)
    assert_one_line(run(command, file, *rest), name, code)
    assert contents(tmp_path) == before


BAD_OPTIONS: dict[str, tuple[tuple[object, ...], str, int]] = {
    "unknown solver": (("--solver", "trge"), "ConfigError", 2),
    "unknown preset": (("--preset", "best", *FAST), "ConfigError", 2),
    "unknown setting": (("--set", "colour=3", *FAST), "ConfigError", 2),
    "setting without value": (("--set", "steps", *FAST), "ConfigError", 2),
    "negative steps": (("--steps", -1), "ConfigError", 2),
    "long text": (("--text", "x" * 10_000, *FAST), "ConfigError", 2),
    "slices": (("--slices", "7:9", *FAST), "GeometryError", 4),
    "not slices": (("--slices", "a:b", *FAST), "ConfigError", 2),
    "no samples": (("--samples", 0), "ConfigError", 2),
    "device": (("--device", "cuda:99", *FAST), "ResourceError", 5),
    "no device": (("--device", "toaster", *FAST), "ConfigError", 2),
    "reader option": (("--reader", "colour=3", *FAST), "ConfigError", 2),
    "missing prior": (("--prior", "no_such_folder"), "ResourceError", 5),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option(case: str, scan: Path, tmp_path: Path) -> None:
    options, name, code = BAD_OPTIONS[case]
    assert_one_line(run("reconstruct", scan, "--out", tmp_path, *options), name, code)
    assert contents(tmp_path) == {}


def test_unwritable_folder(scan: Path, tmp_path: Path) -> None:
    # A folder below a file cannot be made by anybody, root included.
    file = tmp_path / "file"
    file.write_text("keep me")
    assert_one_line(run("reconstruct", scan, "--out", file / "out", *FAST), "ResourceError", 5)
    assert_one_line(run("reconstruct", scan, "--out", file, *FAST), "ResourceError", 5)
    assert contents(tmp_path) == {"file": b"keep me"}


def test_existing_results_are_kept(scan: Path, tmp_path: Path) -> None:
    kept = tmp_path / "scan_rec-zero-filled.nii.gz"
    kept.write_bytes(b"precious")
    assert_one_line(run("reconstruct", scan, "--out", tmp_path, *FAST), "ResourceError", 5)
    assert contents(tmp_path) == {kept.name: b"precious"}
    result = run("reconstruct", scan, "--out", tmp_path, *FAST, "--overwrite")
    assert result.exit_code == 0, result.output
    assert is_complete(tmp_path / "scan_rec-zero-filled.json")


def _fails_at_second_slice(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    import treg_med.volume

    real = treg_med.volume.reconstruct
    calls: list[int] = []

    def fail(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(treg_med.volume, "reconstruct", fail)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (RuntimeError("boom"), 1, "please report"),
        (MemoryError(), 5, "out of memory"),
    ],
)
def test_interruption_and_defects_leave_what_was_there(
    error: BaseException, code: int, words: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scan_rec-zero-filled.json").write_text("old")
    _fails_at_second_slice(error, monkeypatch)
    result = run("reconstruct", scan, "--out", tmp_path, *FAST, "--overwrite")
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert contents(tmp_path) == {"scan_rec-zero-filled.json": b"old"}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--debug", "check", str(tmp_path / "missing.h5")])
    assert type(result.exception).__name__ == "ResourceError"


def test_file_name_cannot_move_the_cursor(tmp_path: Path) -> None:
    result = run("check", tmp_path / "a\x1b[2Jb\nc.h5")
    assert_one_line(result, "ResourceError", 5)
    assert "\x1b" not in result.stderr


# --- options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("3", [3]),
        ("-1", [4]),
        ("1:3", [1, 2]),
        ("::2", [0, 2, 4]),
        ("::-1", [0, 1, 2, 3, 4]),
    ],
)
def test_slices(text: str | None, expected: list[int]) -> None:
    assert parse_slices(text, 5) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("5", GeometryError),
        ("3:3", GeometryError),
        ("", ConfigError),
        ("1:2:3:4", ConfigError),
        ("::0", ConfigError),
    ],
)
def test_bad_slices(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_slices(text, 5)


def test_pairs_are_json_or_words() -> None:
    assert parse_pairs("--set", ["a=1", "b=0.5", "c=true", "d=word", "e=null"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "word",
        "e": None,
    }


def test_steps_go_to_the_setting_of_the_solver() -> None:
    assert parse_settings("treg", [], 3) == {"steps": 3}
    assert parse_settings("tv", [], 3) == {"max_iterations": 3}
    with pytest.raises(ConfigError, match="zero-filled"):
        parse_settings("zero-filled", [], 3)

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
from treg_med.cli.options import parse_pairs
from treg_med.data import RESEARCH_ONLY, is_complete, open_scan, simulate_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.runs.index import RunIndex
from treg_med.runs.tree import OutputTree

SIZE = 32
FAST = ("--solver", "zero-filled")
# What a tree holds beside outputs.
ROOT_FILES = {".bidsignore", "dataset_description.json", "index.jsonl"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outputs(folder: Path) -> dict[str, bytes]:
    """Everything in a tree but what describes the tree itself: volumes, pages, and what is unfinished."""
    return {name: content for name, content in contents(folder).items() if name not in ROOT_FILES}


def tree_of(subject: str, rec: str, suffix: str, datatype: str = "anat") -> set[str]:
    """Names of what one method makes of one scan."""
    stem = f"sub-{subject}_rec-{rec}_{suffix}"
    return {f"{stem}.html", *(f"sub-{subject}/{datatype}/{stem}{end}" for end in (".nii.gz", ".json", ".png"))}


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


def test_reconstruct_writes_volume_sidecar_figure_and_page(scan: Path, tmp_path: Path) -> None:
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
    assert set(contents(tmp_path)) == ROOT_FILES | tree_of("scan", "zerofilled", "image")
    stem = tmp_path / "sub-scan" / "anat" / "sub-scan_rec-zerofilled_image"
    assert is_complete(stem.with_suffix(".json"))
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    assert sidecar["notice"] == RESEARCH_ONLY
    assert sidecar["text"] == "axial T2-weighted brain MRI"
    assert [entry["slice"] for entry in sidecar["slices"]] == [0, 1]
    assert sidecar["prior"] == {"name": None, "sha256": None}
    assert nib.load(stem.with_suffix(".nii.gz")).shape[2] == 2
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / f"{stem.name}.html").read_text()
    assert RESEARCH_ONLY in page
    for written in (stem.with_suffix(".nii.gz"), stem.with_suffix(".png"), tmp_path / f"{stem.name}.html"):
        assert str(written) in result.stdout


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
    (printed,) = json.loads(result.stdout)["volumes"]
    assert [row["label"] for row in printed["results"]] == ["tv", "treg-control", "treg"]
    assert [row["nfe"] > 0 for row in printed["results"]] == [False, False, True]
    assert all(row["seconds"] > 0 and row["residual"] > 0 for row in printed["results"])
    assert (printed["input"], printed["status"], printed["error"], printed["slices"]) == ("scan.h5", "done", None, 1)
    folder = tmp_path / "sub-scan" / "anat"
    assert [Path(row["sidecar_path"]) for row in printed["results"]] == [
        folder / f"sub-scan_rec-{name}.json" for name in ("tv_image", "treg_desc-control_image", "treg_image")
    ]
    assert all(Path(row["image_path"]).is_file() for row in printed["results"])
    assert Path(printed["figure"]) == folder / "sub-scan_rec-treg_image.png"
    assert Path(printed["page"]) == tmp_path / "sub-scan_rec-treg_image.html"
    sidecar = json.loads((folder / "sub-scan_rec-treg_image.json").read_text())
    assert sidecar["prior"]["name"] == tiny_prior_folder.name
    assert sidecar["slices"][0]["settings"]["steps"] == 2
    control = json.loads((folder / "sub-scan_rec-treg_desc-control_image.json").read_text())
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
    place = Path("sub-scan", "anat", "sub-scan_rec-treg_image.nii.gz")
    volumes = [nib.load(tmp_path / name / place).get_fdata() for name in ("all", "last")]
    assert np.array_equal(volumes[0][..., 2], volumes[1][..., 0])


def test_text_of_the_header_is_used_and_said(volume: Path, tmp_path: Path) -> None:
    result = run("reconstruct", volume, "-o", tmp_path, *FAST, "--slices", "1", "--reader", "acceleration=2")
    assert result.exit_code == 0, result.output
    assert "T2-weighted brain MRI" in result.stderr
    assert "simulated" in result.stderr
    assert outputs(tmp_path).keys() == tree_of("brainT2w", "zerofilled", "T2w")
    sidecar = json.loads((tmp_path / "sub-brainT2w" / "anat" / "sub-brainT2w_rec-zerofilled_T2w.json").read_text())
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
    after = outputs(tmp_path / "out")
    assert after == {}
    assert {k: v for k, v in contents(tmp_path).items() if not k.startswith("out/")} == before
    if command == "reconstruct" and case != "folder":
        entries, damaged = RunIndex(OutputTree(tmp_path / "out")).read()
        assert damaged == 0
        assert [(e["status"], e["input"], e["error"]) for e in entries] == [("failed", file.name, name)]


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
    assert outputs(tmp_path) == {}


@pytest.mark.parametrize("case", ["unknown solver", "unknown preset", "unknown setting", "long text", "device"])
def test_what_is_wrong_without_a_scan_leaves_nothing_at_all(case: str, scan: Path, tmp_path: Path) -> None:
    options, _, code = BAD_OPTIONS[case]
    assert run("reconstruct", scan, "--out", tmp_path, *options).exit_code == code
    assert contents(tmp_path) == {}


def test_unwritable_folder(scan: Path, tmp_path: Path) -> None:
    # A folder below a file cannot be made by anybody, root included.
    file = tmp_path / "file"
    file.write_text("keep me")
    assert_one_line(run("reconstruct", scan, "--out", file / "out", *FAST), "ResourceError", 5)
    assert_one_line(run("reconstruct", scan, "--out", file, *FAST), "ResourceError", 5)
    assert contents(tmp_path) == {"file": b"keep me"}


@pytest.mark.parametrize("ending", [".nii.gz", ".json"])
def test_existing_results_are_kept(ending: str, scan: Path, tmp_path: Path) -> None:
    stem = tmp_path / "sub-scan" / "anat" / "sub-scan_rec-zerofilled_image"
    stem.parent.mkdir(parents=True)
    kept = stem.with_suffix(ending)
    kept.write_bytes(b"precious")
    assert_one_line(run("reconstruct", scan, "--out", tmp_path, *FAST), "ResourceError", 5)
    assert outputs(tmp_path) == {kept.relative_to(tmp_path).as_posix(): b"precious"}
    result = run("reconstruct", scan, "--out", tmp_path, *FAST, "--overwrite")
    assert result.exit_code == 0, result.output
    assert is_complete(stem.with_suffix(".json"))


def _fails_at_second_slice(error: BaseException, patch: pytest.MonkeyPatch) -> None:
    from treg_med.runs import volume_worker

    real = volume_worker.reconstruct
    calls: list[int] = []

    def fail(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(*arguments, **keywords)  # type: ignore[arg-type]

    patch.setattr(volume_worker, "reconstruct", fail)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (RuntimeError("boom"), 1, "boom; this is a defect: please report"),
        (MemoryError(), 5, "out of memory"),
    ],
)
def test_interruption_and_defects_leave_what_was_there(
    error: BaseException, code: int, words: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("reconstruct", scan, "--out", tmp_path, *FAST)
    assert run(*common, "--seed", 1).exit_code == 0
    before = outputs(tmp_path)
    with monkeypatch.context() as patch:
        _fails_at_second_slice(error, patch)
        result = run(*common, "--overwrite")
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
    after = outputs(tmp_path)
    assert before.items() <= after.items()
    assert [Path(name).name for name in after.keys() - before.keys()] == ["00000.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom"), MemoryError()], ids=repr)
def test_the_same_command_goes_on_where_it_was_stopped(
    error: BaseException, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("reconstruct", scan, "--out", tmp_path / "whole", *FAST).exit_code == 0
    common = ("reconstruct", scan, "--out", tmp_path / "out", *FAST)
    with monkeypatch.context() as patch:
        _fails_at_second_slice(error, patch)
        assert run(*common).exit_code != 0
    assert [Path(name).name for name in outputs(tmp_path / "out")] == ["00000.safetensors"]
    result = run(*common)
    assert result.exit_code == 0, result.output
    assert "slice 1/3" not in result.stderr
    assert "slice 2/3" in result.stderr
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--debug", "check", str(tmp_path / "missing.h5")])
    assert type(result.exception).__name__ == "ResourceError"


def test_file_name_cannot_move_the_cursor(tmp_path: Path) -> None:
    result = run("check", tmp_path / "a\x1b[2Jb\nc.h5")
    assert_one_line(result, "ResourceError", 5)
    assert "\x1b" not in result.stderr


# --- options


def test_pairs_are_json_or_words() -> None:
    assert parse_pairs("--set", ["a=1", "b=0.5", "c=true", "d=word", "e=null"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "word",
        "e": None,
    }

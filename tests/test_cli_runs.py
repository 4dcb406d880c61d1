"""The command line over many scans: what is taken up, what is set aside, what goes on where it ended."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.runs.scans import write_scan, write_scans
from tests.test_cli import FAST, ROOT_FILES, assert_one_line, contents, outputs, run, tree_of
from treg_med.data import RESEARCH_ONLY, Measurement, Reconstruction, is_complete
from treg_med.errors import NumericsError
from treg_med.runs.index import RunIndex
from treg_med.runs.locks import OutputLock
from treg_med.runs.tree import WORK, OutputTree

# In this process and without pictures: what is tested is which scans are done.
PLAIN = (*FAST, "--workers", 1, "--no-report")


def volume_names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.nii.gz")}


def names(*subjects: str) -> set[str]:
    return {f"sub-{subject}_rec-zerofilled_image.nii.gz" for subject in subjects}


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}


def damage(path: Path, source: Path) -> Path:
    path.write_bytes(source.read_bytes()[:700])
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_scans(tmp_path_factory.mktemp("scans"), 3)


@pytest.fixture(scope="module")
def whole(scans: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one command makes of all of them."""
    out = tmp_path_factory.mktemp("whole")
    assert run("reconstruct", *scans, "-o", out, *PLAIN).exit_code == 0
    return outputs(out)


# --- which scans are taken up


def test_a_folder_is_all_scans_in_it(scans: list[Path], whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    (folder / "site" / "deep").mkdir(parents=True)
    shutil.copy(scans[0], folder)
    shutil.copy(scans[1], folder / "site" / "deep")
    shutil.copy(scans[2], folder / "site" / "scan02.HDF5")
    for left_out in (".cache", "derivatives"):
        (folder / left_out).mkdir()
        shutil.copy(scans[0], folder / left_out / "other.h5")
    (folder / "notes.txt").write_text("no scan")
    (folder / ".hidden.h5").write_text("no scan")
    result = run("reconstruct", folder, "-o", tmp_path / "out", *PLAIN)
    assert result.exit_code == 0, result.output
    assert outputs(tmp_path / "out") == whole
    assert "3 done, 0 skipped, 0 failed" in result.stdout
    assert RESEARCH_ONLY in result.stdout


def test_files_and_folders_together(scans: list[Path], whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(scans[2], folder)
    result = run("reconstruct", scans[1], folder, scans[0], "-o", tmp_path / "out", *PLAIN)
    assert result.exit_code == 0, result.output
    assert outputs(tmp_path / "out") == whole
    told = [line for line in result.stderr.splitlines() if line.startswith("[")]
    assert [line.split(" ")[0] for line in told] == ["[1/3]", "[2/3]", "[3/3]"]
    assert all(line.endswith(": done") for line in told)


@pytest.mark.parametrize("place", [".", "results"])
def test_results_within_the_folder_are_no_scans(place: str, scans: list[Path], tmp_path: Path) -> None:
    shutil.copy(scans[0], tmp_path)
    for _ in range(2):
        result = run("reconstruct", tmp_path, "-o", tmp_path / place, *PLAIN, "--json")
        assert result.exit_code == 0, result.output
        assert [volume["input"] for volume in json.loads(result.stdout)["volumes"]] == ["scan00.h5"]
    assert volume_names(tmp_path) == names("scan00")


def test_scans_of_one_name_in_two_folders_get_two_names(scans: list[Path], tmp_path: Path) -> None:
    for site, scan in (("siteA", scans[0]), ("siteB", scans[1])):
        (tmp_path / site).mkdir()
        shutil.copy(scan, tmp_path / site / "scan.h5")
    out = tmp_path / "out"
    result = run("reconstruct", tmp_path / "siteA", tmp_path / "siteB" / "scan.h5", scans[2], "-o", out, *PLAIN)
    assert result.exit_code == 0, result.output
    assert volume_names(out) == names("siteAscan", "siteBscan", "scan02")


def test_masks_of_a_folder_are_left_out_and_said(scans: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("scan00.h5", "scan00_lesions.h5", "sub-1_label-WM_mask.nii.gz"):
        shutil.copy(scans[0], folder / name)
    result = run("reconstruct", folder, "-o", tmp_path / "out", *PLAIN)
    assert result.exit_code == 0, result.output
    assert volume_names(tmp_path / "out") == names("scan00")
    assert "scans: left out as masks by their names: 2" in result.stderr
    # What is named is taken up.
    result = run("reconstruct", folder / "scan00_lesions.h5", "-o", tmp_path / "out", *PLAIN)
    assert result.exit_code == 0, result.output
    assert volume_names(tmp_path / "out") == names("scan00", "scan00lesions")


def test_an_input_given_twice_is_refused(scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scans[0].parent)
    for twice in ((scans[0], scans[0]), (scans[0], scans[0].name), (scans[0].parent, scans[1])):
        result = run("reconstruct", *twice, "-o", tmp_path / "out", *PLAIN)
        assert_one_line(result, "ConfigError", 2)
        assert f"{Path(twice[1]).name!r} twice" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_without_scans_is_refused(scans: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no scan")
    result = run("reconstruct", scans[0], tmp_path / "empty", "-o", tmp_path / "out", *PLAIN)
    assert_one_line(result, "ResourceError", 5)
    assert "'empty'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to(scans: list[Path], tmp_path: Path) -> None:
    # A folder below a file cannot be made by anybody, root included.
    (tmp_path / "file").write_text("keep me")
    assert_one_line(run("reconstruct", *scans, "-o", tmp_path / "file" / "out", *PLAIN), "ResourceError", 5)
    assert contents(tmp_path) == {"file": b"keep me"}


# --- what fails is set aside


def test_one_damaged_scan_among_several(scans: list[Path], whole: dict[str, bytes], tmp_path: Path) -> None:
    bad = damage(tmp_path / "bad.h5", scans[0])
    result = run("reconstruct", scans[0], bad, *scans[1:], "-o", tmp_path / "out", *PLAIN)
    assert result.exit_code == 3, result.output
    (line,) = [line for line in result.stderr.splitlines() if "failed" in line]
    assert re.match(r"\[\d/4\] bad\.h5: failed: FormatError: expected .*bad\.h5", line)
    assert "3 done, 0 skipped, 1 failed" in result.stdout
    assert "Traceback" not in result.output
    assert outputs(tmp_path / "out") == whole
    entries, _ = RunIndex(OutputTree(tmp_path / "out")).read()
    assert [(e["input"], e["error"]) for e in entries if e["status"] == "failed"] == [("bad.h5", "FormatError")]
    # Mended, it is done, and nothing else is.
    bad.unlink()
    write_scan(bad, seed=9)
    again = run("reconstruct", scans[0], bad, *scans[1:], "-o", tmp_path / "out", *PLAIN)
    assert again.exit_code == 0, again.output
    assert "1 done, 3 skipped, 0 failed" in again.stdout


def test_a_single_damaged_scan_keeps_its_exit_code(scans: list[Path], tmp_path: Path) -> None:
    result = run("reconstruct", damage(tmp_path / "bad.h5", scans[0]), "-o", tmp_path / "out", *PLAIN)
    assert_one_line(result, "FormatError", 3)
    assert "bad.h5" in result.stderr
    missing = run("reconstruct", tmp_path / "missing.h5", "-o", tmp_path / "out", *PLAIN)
    assert_one_line(missing, "ResourceError", 5)
    assert outputs(tmp_path / "out") == {}


def test_a_name_cannot_move_the_cursor(scans: list[Path], tmp_path: Path) -> None:
    bad = damage(tmp_path / "a\x1b[2Jb\nc.h5", scans[0])
    result = run("reconstruct", scans[0], bad, "-o", tmp_path / "out", *PLAIN)
    assert result.exit_code == 3, result.output
    assert "\x1b" not in result.output
    assert sum("failed: FormatError" in line for line in result.stderr.splitlines()) == 1


def test_a_scan_that_another_run_works_on(scans: list[Path], tmp_path: Path) -> None:
    tree = OutputTree(tmp_path)
    tree.prepare()
    with OutputLock(tree.lock("sub-scan00_image"), "the volume"):
        alone = run("reconstruct", scans[0], "-o", tmp_path, *PLAIN)
        assert_one_line(alone, "ResourceError", 5)
        assert "another run" in alone.stderr
        several = run("reconstruct", *scans[:2], "-o", tmp_path, *PLAIN)
        assert several.exit_code == 3
    assert volume_names(tmp_path) == names("scan01")


# --- going on


def test_what_is_there_is_not_done_again(scans: list[Path], tmp_path: Path) -> None:
    first = run("reconstruct", scans[0], "-o", tmp_path, *PLAIN)
    assert "slice 1/2" in first.stderr
    before = stamps(tmp_path)
    for option in ((), ("--resume",)):
        result = run("reconstruct", scans[0], "-o", tmp_path, *PLAIN, *option)
        assert result.exit_code == 0, result.output
        assert "everything is there already" in result.stdout
        assert "slice" not in result.stderr
    assert stamps(tmp_path) == before
    result = run("reconstruct", *scans, "-o", tmp_path, *PLAIN)
    assert "2 done, 1 skipped, 0 failed" in result.stdout
    assert before.items() - stamps(tmp_path).items() == {
        (path, stamp) for path, stamp in before.items() if path.name == "index.jsonl"
    }


def test_overwrite_does_it_again(scans: list[Path], tmp_path: Path) -> None:
    assert run("reconstruct", scans[0], "-o", tmp_path, *PLAIN).exit_code == 0
    before, first = stamps(tmp_path), outputs(tmp_path)
    result = run("reconstruct", scans[0], "-o", tmp_path, *PLAIN, "--overwrite")
    assert result.exit_code == 0, result.output
    assert "slice 2/2" in result.stderr
    assert outputs(tmp_path) == first
    after = stamps(tmp_path)
    assert all(after[path] != before[path] for path in before if path.name.startswith("sub-"))


def test_other_settings_do_not_replace_what_is_there(scans: list[Path], tmp_path: Path) -> None:
    assert run("reconstruct", scans[0], "-o", tmp_path, *PLAIN).exit_code == 0
    before = outputs(tmp_path)
    for other in (("--seed", 7), ("--slices", "0"), ("--text", "axial brain MRI"), ("--threads", 2)):
        result = run("reconstruct", scans[0], "-o", tmp_path, *PLAIN, *other)
        assert_one_line(result, "ResourceError", 5)
        assert "sub-scan00_rec-zerofilled_image" in result.stderr
        assert outputs(tmp_path) == before
    result = run("reconstruct", scans[0], "-o", tmp_path, *PLAIN, "--seed", 7, "--overwrite")
    assert result.exit_code == 0, result.output
    (sidecar,) = tmp_path.rglob("sub-*.json")
    assert is_complete(sidecar)
    assert json.loads(sidecar.read_text())["seed"] == 7


def test_a_report_is_made_when_asked_for(scans: list[Path], tmp_path: Path) -> None:
    assert run("reconstruct", scans[0], "-o", tmp_path, *PLAIN).exit_code == 0
    without = outputs(tmp_path)
    stem = "sub-scan00/anat/sub-scan00_rec-zerofilled_image"
    assert without.keys() == {f"{stem}.nii.gz", f"{stem}.json"}
    result = run("reconstruct", scans[0], "-o", tmp_path, *FAST, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "slice" not in result.stderr
    assert outputs(tmp_path).keys() == tree_of("scan00", "zerofilled", "image")
    assert without.items() <= outputs(tmp_path).items()


def test_ctrl_c_between_scans(
    scans: list[Path], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treg_med.runs import volume_worker

    real, calls = volume_worker.reconstruct, list[int]()

    def stop(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(volume_worker, "reconstruct", stop)
        result = run("reconstruct", *scans, "-o", tmp_path, *PLAIN)
    assert result.exit_code == 130
    assert "goes on" in result.stderr
    assert (tmp_path / WORK).is_dir()
    before = stamps(tmp_path)
    result = run("reconstruct", *scans, "-o", tmp_path, *PLAIN)
    assert result.exit_code == 0, result.output
    assert outputs(tmp_path) == whole
    finished = {path: stamp for path, stamp in before.items() if path.name.startswith("sub-")}
    assert finished
    assert finished.items() <= stamps(tmp_path).items()


# --- shares, processes, engines


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_disjoint_and_complete(
    count: int, scans: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    done: list[str] = []
    for share in range(count):
        result = run("reconstruct", *scans, "-o", tmp_path / "out", *PLAIN, "--shard", f"{share}/{count}", "--json")
        assert result.exit_code == 0, result.output
        printed = json.loads(result.stdout)["volumes"]
        assert {volume["status"] for volume in printed} == {"done"}
        done += [volume["input"] for volume in printed]
    assert sorted(done) == [path.name for path in scans]
    assert outputs(tmp_path / "out") == whole


def test_a_share_of_nothing_is_no_error(scans: list[Path], tmp_path: Path) -> None:
    result = run("reconstruct", scans[0], "-o", tmp_path, *PLAIN, "--shard", "4/5")
    assert result.exit_code == 0, result.output
    assert outputs(tmp_path) == {}


def test_names_do_not_depend_on_the_share(scans: list[Path], tmp_path: Path) -> None:
    for site, scan in (("siteA", scans[0]), ("siteB", scans[1])):
        (tmp_path / site).mkdir()
        shutil.copy(scan, tmp_path / site / "scan.h5")
    inputs = (tmp_path / "siteA", tmp_path / "siteB")
    for share in range(2):
        assert run("reconstruct", *inputs, "-o", tmp_path / "out", *PLAIN, "--shard", f"{share}/2").exit_code == 0
    assert volume_names(tmp_path / "out") == names("siteAscan", "siteBscan")


@pytest.mark.parametrize("shard", ["2/2", "5/2", "0/0", "1", "a/b", "-1/2", "1/2/3", "", "0.5/2"])
def test_a_bad_share_is_refused(shard: str, scans: list[Path], tmp_path: Path) -> None:
    result = run("reconstruct", *scans, "-o", tmp_path / "out", *PLAIN, f"--shard={shard}")
    assert_one_line(result, "ConfigError", 2)
    assert "--shard I/N" in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_processes(scans: list[Path], whole: dict[str, bytes], tmp_path: Path) -> None:
    bad = damage(tmp_path / "bad.h5", scans[0])
    arguments = ("reconstruct", *scans, bad, "-o", tmp_path / "out", *FAST, "--workers", 2, "--no-report", "--json")
    result = run(*arguments)
    assert result.exit_code == 3, result.output
    printed = json.loads(result.stdout)["volumes"]
    # In the order of the inputs, whichever ended first.
    assert [volume["input"] for volume in printed] == [*(path.name for path in scans), "bad.h5"]
    assert outputs(tmp_path / "out") == whole


def test_a_method_that_fails_is_named_and_the_others_are_written(
    scans: list[Path], tiny_prior_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treg_med.runs import volume_worker

    real = volume_worker.reconstruct

    def failing(measurement: Measurement, **settings: object) -> Reconstruction:
        if settings["solver"] == "treg" and settings.get("use_prior", True):
            raise NumericsError("expected a finite image, got NaN")
        return real(measurement, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(volume_worker, "reconstruct", failing)
    learned = ("--prior", tiny_prior_folder, "--solver", "treg", "--set", "steps=2", "--workers", 1, "--device", "cpu")
    written = {f"sub-scan00_rec-{name}_image.nii.gz" for name in ("tv", "treg_desc-control")}
    result = run("reconstruct", scans[0], "-o", tmp_path / "one", *learned)
    assert result.exit_code == NumericsError.exit_code
    assert result.stderr.splitlines()[-1] == "NumericsError: treg: expected a finite image, got NaN"
    assert volume_names(tmp_path / "one") == written
    assert all(name in result.stdout for name in written)
    result = run("reconstruct", *scans[:2], "-o", tmp_path / "two", *learned)
    assert result.exit_code == 3
    assert "0 done, 0 skipped, 2 incomplete, 0 failed" in result.stdout
    assert "scan00.h5: incomplete: NumericsError: treg: expected" in result.stderr
    result = run("reconstruct", *scans[:2], "-o", tmp_path / "two", *learned, "--json")
    assert result.exit_code == 3
    volume = json.loads(result.stdout)["volumes"][1]
    assert (volume["status"], volume["error"]["kind"]) == ("incomplete", "NumericsError")
    assert [one["label"] for one in volume["results"]] == ["tv", "treg-control"]


@pytest.mark.parametrize(
    "options", [("--workers", 0), ("--threads", 0), ("--batch", 0), ("--executor", "cloud")], ids=lambda o: o[0]
)
def test_bad_numbers_of_workers(options: tuple[object, ...], scans: list[Path], tmp_path: Path) -> None:
    result = run("reconstruct", scans[0], "-o", tmp_path, *FAST, *options)
    assert result.exit_code == 2
    assert str(options[0]).strip("-") in result.stderr
    assert outputs(tmp_path) == {}


def test_ray_that_is_not_installed_names_the_extra(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.Distribution.from_name

    def without_ray(name: str) -> importlib.metadata.Distribution:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", without_ray)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("reconstruct", scans[0], "-o", tmp_path, *FAST, "--executor", "ray")
    assert_one_line(result, "ConfigError", 2)
    assert "treg-med[distributed]" in result.stderr
    assert outputs(tmp_path) == {}


# --- what scripts read


def test_json_of_several(scans: list[Path], tmp_path: Path) -> None:
    assert run("reconstruct", scans[0], "-o", tmp_path / "out", *PLAIN).exit_code == 0
    bad = damage(tmp_path / "bad.h5", scans[0])
    result = run("reconstruct", bad, *scans[:2], "-o", tmp_path / "out", *PLAIN, "--json")
    assert result.exit_code == 3
    printed = json.loads(result.stdout)
    assert printed["notice"] == RESEARCH_ONLY
    failed, skipped, done = printed["volumes"]
    assert [v["status"] for v in printed["volumes"]] == ["failed", "skipped", "done"]
    assert (failed["input"], failed["results"], failed["error"]["kind"]) == ("bad.h5", [], "FormatError")
    assert "bad.h5" in failed["error"]["message"]
    for volume, slices in ((skipped, 2), (done, 2)):
        (row,) = volume["results"]
        assert (volume["error"], volume["slices"], row["label"]) == (None, slices, "zero-filled")
        assert is_complete(Path(row["sidecar_path"]))
        assert Path(row["image_path"]) == Path(row["sidecar_path"]).with_suffix(".nii.gz")
        assert (volume["figure"], volume["page"]) == (None, None)
    assert done["results"][0]["residual"] > 1
    assert done["results"][0]["seconds"] > 0
    assert any("inverse crime" in warning for warning in done["warnings"])
    assert set(contents(tmp_path / "out")) - set(outputs(tmp_path / "out")) == ROOT_FILES

"""Runs over volumes: nothing is lost, nothing is done twice, and how it was computed does not show in the outputs."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.runs.scans import METHODS, jobs, outputs, write_scan, write_scans, write_volume
from treg_med.data import Measurement, assemble, is_complete, simulate_scan
from treg_med.data.generic_hdf5 import RawKspaceReader
from treg_med.data.phantoms import phantom_volume
from treg_med.data.slice_record import SliceRecord
from treg_med.errors import ConfigError, GeometryError, NumericsError, ResourceError
from treg_med.runs.driver import RunProgress, run_volumes
from treg_med.runs.index import RunIndex
from treg_med.runs.locks import OutputLock
from treg_med.runs.method import Method
from treg_med.runs.plan import VolumeJob, VolumeOutcome
from treg_med.runs.tree import WORK, OutputTree
from treg_med.solvers import Progress
from treg_med.volume import reconstruct_volume

ROOT = Path(__file__).resolve().parents[2]


def run(paths: list[Path], out: Path, **settings: object) -> list[VolumeOutcome]:
    settings = {"workers": 1, "device": "cpu"} | settings
    return list(run_volumes(jobs(paths, out), **settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_scans(tmp_path_factory.mktemp("scans"), 6)


@pytest.fixture(scope="module")
def serial(scans: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes in one go."""
    out = tmp_path_factory.mktemp("serial")
    assert [o.status for o in run(scans, out)] == ["done"] * len(scans)
    return outputs(out)


# --- what is written


def test_a_tree_of_derivatives(scans: list[Path], tmp_path: Path) -> None:
    (outcome,) = list(run_volumes(jobs(scans[:1], tmp_path, report=True), workers=1, device="cpu"))
    names = set(outputs(tmp_path))
    stem = "sub-scan00_rec-{}_image"
    assert names == {
        ".bidsignore",
        "dataset_description.json",
        f"{stem.format('tv')}.html",
        f"sub-scan00/anat/{stem.format('tv')}.png",
        *(f"sub-scan00/anat/{stem.format(m)}{e}" for m in ("zerofilled", "tv") for e in (".nii.gz", ".json")),
    }
    assert set(outcome.outputs) == {"zero-filled", "tv"}
    assert all(is_complete(path) for path in outcome.outputs.values())
    assert json.loads((tmp_path / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    entries, damaged = RunIndex(OutputTree(tmp_path)).read()
    assert damaged == 0
    assert [(e["status"], e["label"], e["slices"]) for e in entries] == [("done", "zero-filled", 2), ("done", "tv", 2)]
    assert all((tmp_path / e["output"]).exists() and e["seconds"] > 0 for e in entries)
    sidecar = json.loads(outcome.outputs["tv"].read_text())
    assert sidecar["run_hash"] == entries[1]["run_hash"]
    assert sidecar["geometry"]["slice_axis"] == 2
    assert sidecar["compute"] == {"device": "cpu", "threads": 1, "network_batch": None}


def test_copies_of_a_scan_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Their slices are the same work, and each volume forgets its own when it is complete."""
    (first,) = write_scans(tmp_path, 1)
    copies = [shutil.copy(first, tmp_path / f"copy{k}.h5") for k in range(3)]
    found = list(run_volumes(jobs([first, *map(Path, copies)], tmp_path / "out", report=True), workers=2, device="cpu"))
    assert [outcome.status for outcome in found] == ["done"] * 4


def _never(progress: Progress) -> None:
    """A callback keeps the work in this process."""


def test_a_slice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with several methods, a picture and a page that show the target; its coil maps are estimated once."""
    scan = simulate_scan(phantom_volume((24, 24), 12), tmp_path / "scan.h5", coils=2, acceleration=1.0)
    with h5py.File(scan, "a") as file:
        del file["sensitivity_maps"]
    read: list[int] = []
    estimated: list[int] = []
    measure, estimate = RawKspaceReader._measure, assemble.estimate_sensitivity_maps

    def measure_and_count(self: RawKspaceReader, index: int) -> Measurement:
        read.append(index)
        return measure(self, index)

    def estimate_and_count(kspace: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        estimated.append(len(kspace))
        return estimate(kspace, mask)

    monkeypatch.setattr(RawKspaceReader, "_measure", measure_and_count)
    monkeypatch.setattr(assemble, "estimate_sensitivity_maps", estimate_and_count)
    out = tmp_path / "out"
    (outcome,) = list(run_volumes(jobs([scan], out, report=True), workers=1, device="cpu", follow=lambda _: _never))
    assert outcome.status == "done" and outcome.page is not None
    assert "target" in outcome.page.read_text()
    assert read == list(range(12))
    assert estimated == [2] * 12


def test_the_same_bytes_from_two_processes(scans: list[Path], serial: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = run(scans, tmp_path, workers=2)
    assert {o.status for o in outcomes} == {"done"}
    assert outputs(tmp_path) == serial


@pytest.mark.parametrize("batch", [2, 3])
def test_the_same_bytes_from_batches(
    scans: list[Path], serial: dict[str, bytes], tmp_path: Path, batch: int
) -> None:
    assert {o.status for o in run(scans, tmp_path, batch=batch)} == {"done"}
    assert outputs(tmp_path) == serial


def test_the_same_bytes_from_shards(scans: list[Path], serial: dict[str, bytes], tmp_path: Path) -> None:
    for share in range(3):
        run(scans[share::3], tmp_path)
    assert outputs(tmp_path) == serial


def test_the_same_picture_and_page_from_a_run_that_was_stopped(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "brain_T2w.nii.gz")
    (whole,) = run_volumes(jobs([path], tmp_path / "whole", report=True), workers=1, device="cpu")
    stopped = run_volumes(
        jobs([path], tmp_path / "stopped", report=True), workers=1, device="cpu", follow=_raise_at(4)
    )
    with pytest.raises(KeyboardInterrupt):
        list(stopped)
    assert any((tmp_path / "stopped" / WORK).rglob("*.safetensors"))
    list(run_volumes(jobs([path], tmp_path / "stopped", report=True), workers=1, device="cpu"))
    assert whole.page is not None
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")


def _raise_at(count: int):  # type: ignore[no-untyped-def]
    seen: list[str] = []

    def follow(label: str):  # type: ignore[no-untyped-def]
        seen.append(label)
        if len(seen) == count:
            raise KeyboardInterrupt
        return lambda step: None

    return follow


def _note_in(seen: list[str]):  # type: ignore[no-untyped-def]
    def follow(label: str):  # type: ignore[no-untyped-def]
        seen.append(label)
        return lambda step: None

    return follow


# --- what is there is not done again


def test_what_is_done_is_not_touched(scans: list[Path], tmp_path: Path) -> None:
    run(scans[:2], tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*") if p.is_file()}
    assert [o.status for o in run(scans[:2], tmp_path)] == ["skipped", "skipped"]
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


def test_finished_slices_are_not_solved_again(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run_volumes(jobs(scans[:1], tmp_path), workers=1, device="cpu", follow=_raise_at(4)))
    solved: list[str] = []
    list(run_volumes(jobs(scans[:1], tmp_path), workers=1, device="cpu", follow=_note_in(solved)))
    assert solved == ["slice 2/2, tv"]


def test_a_damaged_record_is_solved_again(scans: list[Path], serial: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run_volumes(jobs(scans[:1], tmp_path), workers=1, device="cpu", follow=_raise_at(4)))
    for k, record in enumerate(sorted((tmp_path / WORK).rglob("*.safetensors"))):
        content = bytearray(record.read_bytes())
        content[-3] ^= 1
        record.write_bytes(bytes(content[: len(content) // 2]) if k == 0 else bytes(content))
    run(scans[:1], tmp_path)
    assert outputs(tmp_path).items() <= serial.items()


def test_other_work_of_the_same_name_is_kept(scans: list[Path], tmp_path: Path) -> None:
    run(scans[:1], tmp_path)
    before = outputs(tmp_path)
    (outcome,) = list(run_volumes(jobs(scans[:1], tmp_path, seed=5), workers=1, device="cpu"))
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.exit_code) == ("ResourceError", 5)
    assert "exists" in outcome.failure.message
    assert outputs(tmp_path) == before
    (again,) = list(run_volumes(jobs(scans[:1], tmp_path, seed=5), workers=1, device="cpu", overwrite=True))
    assert again.status == "done"
    assert outputs(tmp_path) != before


def test_another_setting_of_one_method_does_not_keep_the_others_from_it(scans: list[Path], tmp_path: Path) -> None:
    run(scans[:1], tmp_path)
    before = outputs(tmp_path)
    changed = Method("tv", "tv", settings={"max_iterations": 4})
    further = Method("cg-sense", "cg-sense")
    job = VolumeJob(scans[0], (METHODS[0], changed, further), tmp_path, report=False)
    (outcome,) = list(run_volumes([job], workers=1, device="cpu"))
    assert (outcome.status, set(outcome.failures)) == ("incomplete", {"tv"})
    assert (set(outcome.outputs), set(outcome.seconds)) == ({"zero-filled", "cg-sense"}, {"cg-sense"})
    assert "exists already" in outcome.failures["tv"].message
    assert {name: content for name, content in outputs(tmp_path).items() if "cgsense" not in name} == before


def test_a_damaged_output_is_made_again(scans: list[Path], serial: dict[str, bytes], tmp_path: Path) -> None:
    (first,) = run(scans[:1], tmp_path)
    first.outputs["tv"].with_suffix(".nii.gz").write_bytes(b"damaged")
    (second,) = run(scans[:1], tmp_path)
    assert (second.status, set(second.seconds)) == ("done", {"tv"})
    assert outputs(tmp_path).items() <= serial.items()


def test_a_further_method_leaves_the_first_alone(scans: list[Path], tmp_path: Path) -> None:
    first = VolumeJob(scans[0], METHODS[:1], tmp_path)
    (one,) = list(run_volumes([first], workers=1, device="cpu"))
    stamp = one.outputs["zero-filled"].stat().st_mtime_ns
    (two,) = list(run_volumes([VolumeJob(scans[0], METHODS, tmp_path)], workers=1, device="cpu"))
    assert (two.status, set(two.seconds)) == ("done", {"tv"})
    assert two.outputs["zero-filled"].stat().st_mtime_ns == stamp
    assert two.figure is not None
    assert two.figure.exists()


# --- what fails is set aside


def test_one_bad_file_among_many(scans: list[Path], serial: dict[str, bytes], tmp_path: Path) -> None:
    bad = tmp_path / "bad.h5"
    bad.write_bytes(scans[0].read_bytes()[:700])
    outcomes = run([*scans[:3], bad, *scans[3:]], tmp_path / "out", workers=2)
    failed = [o for o in outcomes if o.status == "failed"]
    assert [o.job.input.name for o in failed] == ["bad.h5"]
    assert failed[0].failure is not None
    assert failed[0].failure.kind == "FormatError"
    assert outputs(tmp_path / "out") == serial
    entries, _ = RunIndex(OutputTree(tmp_path / "out")).read()
    assert [e["input"] for e in entries if e["status"] == "failed"] == ["bad.h5"]


def test_nan_in_one_slice_sets_the_volume_aside(scans: list[Path], tmp_path: Path) -> None:
    import h5py

    path = write_scan(tmp_path / "nan.h5", slices=3)
    with h5py.File(path, "r+") as file:
        data = file["kspace"][()]
        data[1, 0, 12, 12] = np.nan
        file["kspace"][...] = data
    outcomes = run([path, scans[0]], tmp_path / "out")
    by_name = {o.job.input.name: o for o in outcomes}
    assert by_name["scan00.h5"].status == "done"
    failure = by_name["nan.h5"].failure
    assert failure is not None
    assert failure.kind in ("NumericsError", "FormatError")
    assert "1" in failure.message
    # The slices that can be had are had by asking for them.
    (part,) = list(run_volumes(jobs([path], tmp_path / "out", slices="0"), workers=1, device="cpu"))
    assert part.status == "done"


# FBP is of CT: on k-space it fails at every slice.
WITH_A_FAILING = (METHODS[0], Method("fbp", "fbp"), METHODS[1])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_method_that_fails_does_not_keep_the_others_from_it(
    scans: list[Path], serial: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    work = [VolumeJob(path, WITH_A_FAILING, tmp_path, report=False) for path in scans[:3]]
    for attempt in range(2):
        outcomes = list(run_volumes(work, workers=workers, device="cpu"))
        assert [o.status for o in outcomes] == ["incomplete"] * 3
        for outcome in outcomes:
            assert set(outcome.outputs) == {"zero-filled", "tv"}
            assert set(outcome.seconds) == (set() if attempt else {"zero-filled", "tv"})
            assert set(outcome.failures) == {"fbp"}
            assert outcome.failure is not None
            assert outcome.failure.kind == outcome.failures["fbp"].kind
            assert outcome.failure.message.startswith("fbp: ")
    written = {name: content for name, content in outputs(tmp_path).items() if not name.startswith(WORK)}
    assert written == {name: serial[name] for name in written}
    assert len(written) == 2 + 3 * 4
    entries, _ = RunIndex(OutputTree(tmp_path)).read()
    assert sum(e["status"] == "done" for e in entries) == 6
    assert [e["label"] for e in entries if e["status"] == "failed"] == ["fbp"] * 6


def test_a_method_that_fails_late_keeps_its_slices_and_wastes_no_more(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treg_med.runs import volume_worker

    path = write_scan(tmp_path / "scan.h5", slices=4)
    real, solved = volume_worker.reconstruct, []

    def failing(measurement: object, **settings: object) -> object:
        solved.append(settings["solver"])
        if solved.count("tv") == 2 and settings["solver"] == "tv":
            raise NumericsError("expected a finite image, got NaN")
        return real(measurement, **settings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(volume_worker, "reconstruct", failing)
        (outcome,) = list(run_volumes(jobs([path], tmp_path / "out", report=True), workers=1, device="cpu"))
    assert solved.count("tv") == 2
    assert solved.count("zero-filled") == 4
    # The picture and the page are of the main method.
    assert (outcome.status, outcome.page, outcome.figure) == ("incomplete", None, None)
    assert not list((tmp_path / "out").rglob("*.png"))
    again: list[str] = []
    (outcome,) = list(
        run_volumes(jobs([path], tmp_path / "out", report=True), workers=1, device="cpu", follow=_note_in(again))
    )
    assert again == [f"slice {k}/4, tv" for k in (2, 3, 4)]
    assert (outcome.status, set(outcome.outputs)) == ("done", {"zero-filled", "tv"})
    assert outcome.figure is not None and outcome.figure.exists()
    assert not (tmp_path / "out" / WORK).exists()


def test_a_full_disk(scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(scans[:1], tmp_path)
    before = outputs(tmp_path)
    real = SliceRecord.save

    def full(self: SliceRecord, path: Path) -> None:
        raise ResourceError("keeping slice 0 failed: [Errno 28] No space left on device")

    monkeypatch.setattr(SliceRecord, "save", full)
    outcomes = run(scans[:3], tmp_path)
    assert [o.status for o in outcomes] == ["skipped", "failed", "failed"]
    assert outputs(tmp_path) == before
    monkeypatch.setattr(SliceRecord, "save", real)
    assert [o.status for o in run(scans[:3], tmp_path)] == ["skipped", "done", "done"]


def test_a_disk_that_fills_while_a_volume_is_written(
    scans: list[Path], serial: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run(scans[:1], tmp_path)  # the tree is there
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        (outcome,) = run(scans[1:2], tmp_path)
    assert outcome.failure is not None
    assert (outcome.failure.kind, "space" in outcome.failure.message) == ("ResourceError", True)
    assert not any(p.suffix == ".tmp" for p in tmp_path.rglob("*"))
    # The slices were kept, so that the second attempt only writes.
    solved: list[str] = []
    list(run_volumes(jobs(scans[1:2], tmp_path), workers=1, device="cpu", follow=_note_in(solved)))
    assert not solved
    assert outputs(tmp_path).items() <= serial.items()


def test_a_folder_that_cannot_be_written_to(scans: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (outcome,) = run(scans[:1], tmp_path / "file" / "out")
    assert outcome.failure is not None
    assert outcome.failure.kind == "ResourceError"


def test_two_runs_on_one_folder(scans: list[Path], serial: dict[str, bytes], tmp_path: Path) -> None:
    tree = OutputTree(tmp_path)
    tree.prepare()
    with OutputLock(tree.lock("sub-scan00_image"), "the other run's volume"):
        outcomes = run(scans[:2], tmp_path)
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert outcomes[0].failure is not None
    assert "another run" in outcomes[0].failure.message
    assert run(scans[:1], tmp_path)[0].status == "done"
    assert outputs(tmp_path).items() <= serial.items()


@pytest.mark.slow
def test_two_runs_at_once(scans: list[Path], serial: dict[str, bytes], tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.runs.scans import jobs; from treg_med.runs.driver import run_volumes;"
        f"print([o.status for o in run_volumes(jobs({[str(p) for p in scans]!r} and "
        f"[Path(p) for p in {[str(p) for p in scans]!r}], Path({str(tmp_path)!r})), workers=1, device='cpu')])"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    run(scans, tmp_path)  # what one found locked and the other finished is there; nothing is half
    assert outputs(tmp_path) == serial


def test_a_damaged_index_loses_nothing(scans: list[Path], tmp_path: Path) -> None:
    run(scans[:1], tmp_path)
    index = tmp_path / "index.jsonl"
    good = index.read_text()
    index.write_text(good[:-20] + '\n{"cut off": \n\x00\x00')
    run(scans[:2], tmp_path)
    entries, damaged = RunIndex(OutputTree(tmp_path)).read()
    assert damaged == 0
    # The damaged entry comes again from the sidecar.
    assert [e["input"] for e in entries] == ["scan00.h5", "scan00.h5", "scan01.h5", "scan01.h5"]
    assert [e["label"] for e in entries] == ["zero-filled", "tv", "zero-filled", "tv"]
    assert "cut off" in (tmp_path / "index.damaged").read_text()
    assert all(is_complete(p) for p in tmp_path.rglob("*_image.json"))


def test_what_a_killed_run_did_not_list_is_listed_by_the_next(scans: list[Path], tmp_path: Path) -> None:
    run(scans[:2], tmp_path)
    before, index = outputs(tmp_path), tmp_path / "index.jsonl"
    *kept, last = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(kept) + last[:300])
    assert [o.status for o in run(scans[:2], tmp_path)] == ["skipped", "skipped"]
    entries, _ = RunIndex(OutputTree(tmp_path)).read()
    whole = json.loads(last)
    assert entries[:-1] == [json.loads(line) for line in kept]
    unknown = {"finished", "seconds", "peak_memory_mb"}
    assert {k: v for k, v in entries[-1].items() if k not in unknown} == {
        k: v for k, v in whole.items() if k not in unknown
    }
    assert entries[-1]["seconds"] is None
    assert outputs(tmp_path) == before
    run(scans[:2], tmp_path)
    assert RunIndex(OutputTree(tmp_path)).read()[0] == entries


def test_what_another_run_listed_meanwhile_is_not_listed_twice(scans: list[Path], tmp_path: Path) -> None:
    first = run_volumes(jobs(scans[:3], tmp_path), workers=1, device="cpu")
    next(first)
    run(scans[2:3], tmp_path)
    assert [o.status for o in first] == ["done", "skipped"]
    entries, _ = RunIndex(OutputTree(tmp_path)).read()
    assert len(entries) == 2 * 3


def test_what_was_written_before_a_kill_is_listed_with_the_rest(scans: list[Path], tmp_path: Path) -> None:
    run(scans[:1], tmp_path)
    for path in tmp_path.rglob("*rec-tv*"):
        path.unlink()
    (tmp_path / "index.jsonl").unlink()
    assert [o.status for o in run(scans[:1], tmp_path)] == ["done"]
    entries, _ = RunIndex(OutputTree(tmp_path)).read()
    assert [(e["label"], e["seconds"] is None) for e in entries] == [("zero-filled", True), ("tv", False)]


def test_settings_that_cannot_be_used(scans: list[Path], tmp_path: Path) -> None:
    twice = (Method("tv", "tv"), Method("t-v", "tv"))
    (outcome,) = list(run_volumes([VolumeJob(scans[0], twice, tmp_path)], workers=1, device="cpu"))
    assert outcome.failure is not None
    assert outcome.failure.kind == "ConfigError"
    with pytest.raises(ConfigError, match="device"):
        list(run_volumes(jobs(scans[:1], tmp_path), device="toaster"))
    with pytest.raises(ResourceError, match="CUDA"):
        list(run_volumes(jobs(scans[:1], tmp_path), device="cuda:99"))
    with pytest.raises(ConfigError, match="executor"):
        list(run_volumes(jobs(scans[:1], tmp_path), executor="cloud", device="cpu"))


# --- in this process


def test_an_open_scan(tmp_path: Path) -> None:
    import treg_med as tm

    with tm.open_scan(write_scan(tmp_path / "scan.h5", slices=3)) as scan:
        done = reconstruct_volume(scan, METHODS, tmp_path / "out", slices="1:", name="sub-07_ses-1_T2w", report=False)
        assert done.outputs["tv"].name == "sub-07_ses-1_rec-tv_T2w.json"
        assert reconstruct_volume(scan, METHODS, tmp_path / "out", slices="1:", name="sub-07_ses-1_T2w").status
        with pytest.raises(GeometryError, match="slice"):
            reconstruct_volume(scan, METHODS, tmp_path / "other", slices="7")
    assert len(json.loads(done.outputs["tv"].read_text())["slices"]) == 2


def test_progress_counts_slices_and_volumes(scans: list[Path], tmp_path: Path) -> None:
    seen: list[RunProgress] = []
    run(scans[:3], tmp_path, watch=seen.append)
    assert (seen[-1].volumes, seen[-1].slices, seen[-1].slices_total) == (3, 6, 6)
    assert [p.slices for p in seen] == sorted(p.slices for p in seen)


# --- processes that are killed


@pytest.mark.slow
def test_forty_volumes_one_worker_killed(tmp_path: Path) -> None:
    paths = write_scans(tmp_path / "scans", 40)
    run(paths, tmp_path / "serial")
    outcomes: list[VolumeOutcome] = []
    for outcome in run_volumes(jobs(paths, tmp_path / "out"), workers=2, device="cpu"):
        outcomes.append(outcome)
        if len(outcomes) == 10:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    assert [o.status for o in outcomes] == ["done"] * 40
    assert outputs(tmp_path / "out") == outputs(tmp_path / "serial")
    assert not (tmp_path / "out" / WORK).exists()


def _run_until_killed(paths: list[Path], out: Path) -> None:
    torch.set_num_threads(1)
    run(paths, out)


@pytest.mark.slow
def test_killed_at_a_hundred_moments(tmp_path: Path) -> None:
    paths = write_scans(tmp_path / "scans", 6, slices=3)
    began = time.monotonic()
    run(paths, tmp_path / "serial")
    whole = time.monotonic() - began
    expected = outputs(tmp_path / "serial")
    random = np.random.default_rng(0)
    kills, seen, out = 0, 0, tmp_path / "out"
    while kills < 100:
        finished: dict[Path, int] = {}
        while len(finished) < 2 * len(paths) and kills < 100:
            process = multiprocessing.get_context("fork").Process(target=_run_until_killed, args=(paths, out))
            process.start()
            time.sleep(whole / 3 * random.random())
            process.kill()
            process.join()
            kills += 1
            for sidecar in out.rglob("*_image.json"):
                assert is_complete(sidecar)
                stamp = finished.setdefault(sidecar, sidecar.stat().st_mtime_ns)
                assert sidecar.stat().st_mtime_ns == stamp
            assert all(path.exists() for path in finished)
        run(paths, out)
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
        assert outputs(out) == expected
        assert not (out / WORK).exists()
        entries, damaged = RunIndex(OutputTree(out)).read()
        assert damaged == 0
        assert len({entry["output"] for entry in entries}) == len(entries) == 2 * len(paths)
        seen += len(finished)
        shutil.rmtree(out)
    assert seen > 20

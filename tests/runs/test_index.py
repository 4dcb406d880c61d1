"""The index: whole lines, damaged ones set aside, nothing else lost."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from treg_med.errors import ResourceError
from treg_med.runs.index import RunIndex
from treg_med.runs.tree import WORK, OutputTree


@pytest.fixture
def index(tmp_path: Path) -> RunIndex:
    return RunIndex(OutputTree(tmp_path))


def inputs(index: RunIndex) -> list[object]:
    return [entry["input"] for entry in index.read()[0]]


def test_no_index_is_an_empty_one(index: RunIndex) -> None:
    assert index.read() == ([], 0)
    assert index.repair() == 0
    assert not index.path.exists()


def test_entries_come_back_in_order_with_their_time(index: RunIndex) -> None:
    for number in range(3):
        index.append({"input": f"scan{number}.h5", "seconds": np.float32(0.5), "residual": float("nan"), "of": (1, 2)})
    entries, damaged = index.read()
    assert damaged == 0
    assert inputs(index) == ["scan0.h5", "scan1.h5", "scan2.h5"]
    assert (entries[0]["seconds"], entries[0]["residual"], entries[0]["of"]) == (0.5, None, [1, 2])
    assert all(datetime.fromisoformat(entry["finished"]).tzinfo is not None for entry in entries)
    assert len(index.path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("name", ["Müller.h5", "two\nlines.h5", "bad\udcff.h5", 'quote".h5', "\x1b[2J.h5"])
def test_every_file_name_is_one_line(index: RunIndex, name: str) -> None:
    index.append({"input": name})
    index.append({"input": "next"})
    assert inputs(index) == [name, "next"]
    assert len(index.path.read_bytes().splitlines()) == 2


def test_a_line_that_was_cut_off_does_not_swallow_the_next(index: RunIndex) -> None:
    index.append({"input": "first"})
    index.path.write_bytes(index.path.read_bytes() + b'{"input": "cut')
    index.append({"input": "second"})
    assert inputs(index) == ["first", "second"]
    assert index.read()[1] == 1


def test_a_last_line_without_its_end_is_kept(index: RunIndex) -> None:
    index.append({"input": "first"})
    index.path.write_bytes(index.path.read_bytes().rstrip(b"\n"))
    index.append({"input": "second"})
    assert inputs(index) == ["first", "second"]
    assert index.read()[1] == 0


@pytest.mark.parametrize("use", ["repair", "append"])
@pytest.mark.parametrize("kept", [1, 14, 15, 60, 200_000])
def test_the_beginning_of_a_line_left_by_a_killed_process_is_dropped(index: RunIndex, kept: int, use: str) -> None:
    index.append({"input": "first"})
    before = index.path.read_bytes()
    index.append({"input": "killed", "filler": "x" * 300_000})
    index.path.write_bytes(index.path.read_bytes()[: len(before) + kept])
    if use == "repair":
        assert index.repair() == 0
        assert index.path.read_bytes() == before
    index.append({"input": "second"})
    assert inputs(index) == ["first", "second"]
    assert index.read()[1] == 0
    assert not index.path.with_suffix(".damaged").exists()


DAMAGED = [
    b"\x00" * 40,
    b'{"input": "cut',
    b'"no object"',
    b"[1, 2]",
    b'{"residual": NaN}',
    b'{"residual": -Infinity}',
    b"\xff\xfe{}",
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: repr(line[:12]))
def test_damaged_lines_are_set_aside(index: RunIndex, line: bytes) -> None:
    index.append({"input": "first"})
    index.append({"input": "second"})
    first, second = index.path.read_bytes().splitlines()
    index.path.write_bytes(first + b"\n\n" + line + b"\n" + second)
    assert index.repair() == 1
    assert index.path.read_bytes() == first + b"\n" + second + b"\n"
    assert index.path.with_suffix(".damaged").read_bytes() == line + b"\n"
    assert index.repair() == 0
    index.append({"input": "third"})
    assert inputs(index) == ["first", "second", "third"]


def test_what_was_set_aside_before_stays(index: RunIndex) -> None:
    for line in (b"one", b"two"):
        with_line = (index.path.read_bytes() if index.path.exists() else b"") + line
        index.path.write_bytes(with_line)
        assert index.repair() == 1
    assert index.path.with_suffix(".damaged").read_bytes() == b"one\ntwo\n"


def test_good_lines_are_kept_as_they_are(index: RunIndex) -> None:
    odd = b'{"big": 1e999, "lone": "\\ud800", "spaces" :  [ ] }'
    index.path.write_bytes(odd + b"\ndamaged\n")
    assert index.repair() == 1
    assert index.path.read_bytes() == odd + b"\n"


def test_nothing_is_left_beside_it(index: RunIndex, tmp_path: Path) -> None:
    index.append({"input": "first"})
    index.path.write_bytes(index.path.read_bytes() + b"damaged")
    index.repair()
    OutputTree(tmp_path).tidy()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.damaged", "index.jsonl"]
    assert not (tmp_path / WORK).exists()


def test_an_index_that_cannot_be_read_or_written(index: RunIndex) -> None:
    index.path.mkdir()
    for use in (index.read, index.repair, lambda: index.append({"input": "x"})):
        with pytest.raises(ResourceError, match=r"index\.jsonl"):
            use()


def test_several_writers_share_it(index: RunIndex, tmp_path: Path) -> None:
    def write(name: str) -> None:
        own = RunIndex(OutputTree(tmp_path))
        for number in range(10):
            own.append({"input": f"{name}{number}", "filler": "x" * 5000})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert index.read()[1] == 0
    assert sorted(map(str, inputs(index))) == sorted(f"{name}{number}" for name in "abcd" for number in range(10))
    assert all(json.loads(line) for line in index.path.read_text().splitlines())

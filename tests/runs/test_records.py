"""The store of finished slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from treg_med.data.slice_record import SliceRecord
from treg_med.errors import FormatError, ResourceError
from treg_med.runs.records import RecordStore


def record(index: int, value: float = 1.0) -> SliceRecord:
    return SliceRecord(index, np.full((4, 3), value, np.float32), facts={"slice": index})


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "work" / "0123")


def test_what_was_put_is_there(store: RecordStore) -> None:
    assert not store.has(2)
    store.put(record(2))
    store.put(record(10, 5.0))
    assert [store.has(i) for i in (1, 2, 10)] == [False, True, True]
    assert store.get(10).image[0, 0] == 5.0
    assert [path.name for path in sorted(store.folder.iterdir())] == ["00002.safetensors", "00010.safetensors"]


def test_a_slice_is_replaced(store: RecordStore) -> None:
    store.put(record(2))
    store.put(record(2, 7.0))
    assert store.get(2).image[0, 0] == 7.0
    assert len(list(store.folder.iterdir())) == 1


def test_a_missing_slice(store: RecordStore) -> None:
    with pytest.raises(FormatError, match=r"00003\.safetensors"):
        store.get(3)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_slice_is_removed(store: RecordStore, damage: str) -> None:
    store.put(record(0))
    store.put(record(1))
    content = store.path(1).read_bytes()
    new = {
        "cut": content[:-3],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
        "other": b"no record at all",
    }[damage]
    store.path(1).write_bytes(new)
    with pytest.raises(FormatError):
        store.get(1)
    assert not store.has(1)
    assert not store.path(1).exists()
    assert store.has(0)


def test_clearing(store: RecordStore) -> None:
    store.clear()
    store.put(record(0))
    store.clear()
    assert not store.folder.exists()
    assert not store.has(0)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="another output folder"):
        RecordStore(tmp_path / "file" / "work").put(record(0))

"""One writer at a time, whatever becomes of the writer."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from treg_med.errors import ResourceError
from treg_med.runs.locks import OutputLock

ROOT = Path(__file__).resolve().parents[2]
HOLDER = (
    "import sys; from pathlib import Path; from treg_med.runs.locks import OutputLock;"
    "OutputLock(Path(sys.argv[1]), 'it').acquire(); print('held', flush=True); sys.stdin.read()"
)


def hold_elsewhere(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.wait(10)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def test_the_file_is_there_only_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "volume.lock"
    with OutputLock(path, "the volume") as lock:
        assert path.exists()
        assert lock.acquire() is lock
    assert not path.exists()
    lock.release()
    with lock:
        assert path.exists()


def test_a_second_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "volume.lock"
    with OutputLock(path, "'sub-01'"):
        with pytest.raises(ResourceError, match="another run is writing 'sub-01'; wait for it"):
            OutputLock(path, "'sub-01'").acquire()
        assert path.exists()
        with OutputLock(tmp_path / "other.lock", "another"):
            pass
    with OutputLock(path, "'sub-01'"):
        pass


def test_one_that_was_refused_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "volume.lock"
    with OutputLock(path, "it"):
        second = OutputLock(path, "it")
        with pytest.raises(ResourceError):
            second.acquire()
        second.release()
        with pytest.raises(ResourceError):
            OutputLock(path, "it").acquire()


def test_an_exception_gives_it_up(tmp_path: Path) -> None:
    with pytest.raises(KeyError), OutputLock(tmp_path / "lock", "it"):
        raise KeyError
    assert not (tmp_path / "lock").exists()


def test_another_process_is_seen_and_its_death_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = hold_elsewhere(path)
    with pytest.raises(ResourceError, match="another run"):
        OutputLock(path, "it").acquire()
    process.kill()
    end(process)
    assert path.exists()  # nobody could remove it
    with OutputLock(path, "it"):
        pass
    assert not path.exists()


def test_waiting_for_another_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = hold_elsewhere(path)
    threading.Timer(0.3, process.kill).start()
    with OutputLock(path, "it", wait=True):
        assert process.wait(10) != 0
    end(process)


def test_many_that_wait_are_let_in_one_by_one(tmp_path: Path) -> None:
    inside, most, turns = 0, 0, []

    def work(number: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with OutputLock(tmp_path / "work" / "lock", "it", wait=True):
                inside += 1
                most = max(most, inside)
                turns.append(number)
                inside -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert sorted(turns) == sorted([*range(6)] * 20)
    assert not (tmp_path / "work" / "lock").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="expected a folder to write to"):
        OutputLock(tmp_path / "file" / "lock", "it").acquire()

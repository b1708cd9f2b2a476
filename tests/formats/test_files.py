"""Positioned reads and writes, with the system's calls and without; files that appear whole or not at all."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.builds import parts

from mergeflow.errors import IntegrityError, MissingInput, ResourceError
from mergeflow.formats import files, processes
from mergeflow.formats.files import ReadFile, fingerprint
from mergeflow.formats.parts import PartFile, clear_dead_parts, write_text_file
from mergeflow.formats.workers import Queue, drain


@pytest.fixture(params=[False, True], ids=["system", "portable"], autouse=True)
def portable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(files, "PORTABLE", request.param)
    return request.param


def test_reading_at_offsets_from_many_threads(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 1_000_003, np.uint8).tobytes()
    path = tmp_path / "x"
    path.write_bytes(data)
    wrong: list[int] = []
    with ReadFile(path) as file:

        def some(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(200):
                at = int(rng.integers(0, len(data)))
                n = int(rng.integers(0, min(5000, len(data) - at) + 1))
                if file.read(n, at) != data[at : at + n]:
                    wrong.append(at)

        threads = [threading.Thread(target=some, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong
        before = file.bytes_read
        file.read(10, 5)
        assert file.bytes_read == before + 10
        with pytest.raises(IntegrityError, match="it ends at byte 1,000,003"):
            file.read(2, len(data) - 1)


@pytest.mark.parametrize("change", ["append", "rewrite", "truncate"])
def test_a_file_that_changes_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345678")
    os.utime(path, ns=(1, 1))
    with ReadFile(path) as file:
        file.check_unchanged()
        if change == "append":
            with path.open("ab") as other:
                other.write(b"9")
        elif change == "rewrite":
            path.write_bytes(b"87654321")
        else:
            os.truncate(path, 4)
        with pytest.raises(IntegrityError, match="changed while it was being read"):
            file.check_unchanged()


def test_writing_in_any_order(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8)
    final = tmp_path / "deep" / "folder" / "x.bin"
    with PartFile(final, data.size) as part:
        order = np.random.default_rng(1).permutation(300).tolist()

        def start():  # type: ignore[no-untyped-def]
            def one(i: int) -> None:
                part.write(memoryview(data[i * 1000 : (i + 1) * 1000]), i * 1000)
                part.write_back(i * 1000, 1000)

            return one

        drain(Queue(order), start, 4)
        assert not final.exists()
        at = part.commit()
    assert final.read_bytes() == data.tobytes()
    assert at == fingerprint(final.stat())
    assert not parts(tmp_path)


def test_nothing_is_left_without_commit(tmp_path: Path) -> None:
    final = tmp_path / "x.bin"
    final.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on the way"), PartFile(final, 100) as part:  # noqa: PT012
        part.write(memoryview(b"new"), 0)
        assert len(parts(tmp_path)) == 1
        raise RuntimeError("on the way")
    assert final.read_bytes() == b"old"
    assert not parts(tmp_path)


def test_the_mode_of_a_file_that_is_replaced_is_kept(tmp_path: Path) -> None:
    final = tmp_path / "x.bin"
    final.write_bytes(b"old")
    final.chmod(0o640)
    write_text_file(final, "new")
    assert final.read_text() == "new"
    assert final.stat().st_mode & 0o777 == 0o640


def test_a_disk_without_room_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the disk has"):
        PartFile(tmp_path / "x.bin", 1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_names_as_long_as_the_system_allows(tmp_path: Path) -> None:
    name = "長い名前" * 20 + "x" * 10  # 250 bytes
    write_text_file(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    assert not parts(tmp_path)


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="making its folder"):
        PartFile(tmp_path / "file" / "x.bin", 1)
    with pytest.raises(MissingInput):
        ReadFile(tmp_path / "file" / "x.bin")


def test_the_leftovers_of_the_dead_are_cleared_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    me, host, boot = os.getpid(), processes._host(), processes._boot()
    started = processes._started(me)
    dead = [
        f".a.safetensors.{host}-{boot}-{me}-12345-0.part",  # our pid, but of an earlier process
        f".b.safetensors.{host}-{boot}-4194303-{started}-0.part",  # no such process
        f".c.safetensors.{host}-00000000-{me}-{started}-0.part",  # before the last boot
    ]
    kept = [
        f".d.safetensors.{host}-{boot}-{me}-{started}-0.part",  # being written now
        f".e.safetensors.ffffffff-{boot}-4194303-1-0.part",  # of another machine, on a shared disk
        ".f.part", "g.part", ".h.safetensors.x-y.part", "plain.safetensors", f".i.{host}-{boot}-pid-1-0.part",
    ]  # fmt: skip
    for name in dead + kept:
        (tmp_path / name).write_text("")
    assert {p.name for p in clear_dead_parts(tmp_path)} == set(dead)
    assert {p.name for p in tmp_path.iterdir()} == set(kept)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere psutil says when a process was started")
def test_a_clock_that_is_set_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil counts from the time of the boot, which is what the clock says now less the time since."""
    import psutil

    mark = processes.process_mark()
    at_first, booted = psutil.Process().create_time(), psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)
    assert psutil.Process().create_time() > at_first + 3000, "psutil has another way now: see whether this is needed"
    assert not processes.process_is_gone(mark)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_nobody_may_see_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    mark = f"{processes._host()}-{processes._boot()}-4194303-1"
    assert processes.process_is_gone(mark)
    monkeypatch.setattr(os, "kill", refuse)  # as for a process of another user where /proc hides those
    assert not processes.process_is_gone(mark)


def test_a_machine_of_the_same_name_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = processes.process_mark().split("-")
    monkeypatch.setattr(processes, "_processes_of", lambda: "pid:[4026532999]")  # a container called as its host
    monkeypatch.setattr(processes, "_host", processes._host.__wrapped__)
    assert not processes.process_is_gone(f"{mark[0]}-{mark[1]}-4194303-1")


# -- the queue of work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_every_item_is_done_once(workers: int) -> None:
    done: list[int] = []
    drain(Queue(range(1000)), lambda: done.append, workers)
    assert sorted(done) == list(range(1000))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("error", [ValueError("seven"), KeyboardInterrupt()])
def test_the_first_error_stops_all(workers: int, error: BaseException) -> None:
    done: list[int] = []

    def one(i: int) -> None:
        if i == 7:
            raise error
        done.append(i)

    with pytest.raises(type(error)):
        drain(Queue(range(1_000_000)), lambda: one, workers)
    assert len(done) < 999_999


def test_an_error_in_starting_a_worker() -> None:
    def start():  # type: ignore[no-untyped-def]
        raise MemoryError("no buffers")

    with pytest.raises(MemoryError):
        drain(Queue(range(10)), start, 3)

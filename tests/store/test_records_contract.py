"""What a build may expect of records, with a disk or without."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergeflow.formats.files import Fingerprint
from mergeflow.store.records import LocalRecords, MemoryRecords, OutputRecord, Records

RECORD = OutputRecord(
    Fingerprint(1, 2, 3, 4, 5), "k3:aa", "b3:bb", {"params": {"m": "0.3"}, "sources": {"猫": "b3:cc"}}
)
OTHER = OutputRecord(Fingerprint(2**64 - 1, 2**63, 2**40, 1_700_000_000_123_456_789, -5), "k3:x", "b3:y", {})


def warn(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture(params=["memory", "local"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
    made = MemoryRecords() if request.param == "memory" else LocalRecords(tmp_path / "cache", warn)
    yield made
    made.close()


def test_nothing_is_known_at_first(records: Records) -> None:
    assert records.find(Path("/out/a.safetensors")) is None
    assert records.paths() == []
    assert records.stamp("x") is None
    records.forget(Path("/out/a.safetensors"))


@pytest.mark.parametrize("record", [RECORD, OTHER])
@pytest.mark.parametrize("path", ["/out/a.safetensors", "/out/模型 'x' \\ \"y\".safetensors", "relative.safetensors"])
def test_what_is_put_is_found_as_it_was(records: Records, record: OutputRecord, path: str) -> None:
    records.put(Path(path), record)
    assert records.find(Path(path)) == record
    assert records.find(Path(path + ".other")) is None
    assert records.paths() == [Path(path)]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_a_path_that_is_no_text(records: Records) -> None:
    """A folder's name of the days before UTF-8; the system gives it with half characters in it."""
    path = Path(os.fsdecode(b"/out/\xfcber/a.safetensors"))
    records.put(path, RECORD)
    records.put_made(path, b"keys")
    assert (records.find(path), records.made(path), records.paths()) == (RECORD, b"keys", [path])
    records.forget(path)
    assert (records.find(path), records.made(path), records.paths()) == (None, b"", [])


def test_the_latest_counts(records: Records) -> None:
    records.put(Path("/a"), RECORD)
    records.put(Path("/a"), OTHER)
    assert records.find(Path("/a")) == OTHER
    assert len(records.paths()) == 1


def test_forgetting_one_keeps_the_others(records: Records) -> None:
    for name in "cab":
        records.put(Path("/") / name, RECORD)
    records.forget(Path("/a"))
    assert records.find(Path("/a")) is None
    assert records.find(Path("/b")) == RECORD
    assert records.paths() == [Path("/b"), Path("/c")]


def test_stamps_by_how_a_build_was_asked_for(records: Records) -> None:
    stamp = {"recipes": [["/r.yaml", "aa"]], "sources": [["/猫", [1, 2, 3]]], "outputs": []}
    records.put_stamp("one", stamp)
    assert records.stamp("one") == stamp
    assert records.stamp("two") is None
    records.put_stamp("one", {"recipes": []})
    assert records.stamp("one") == {"recipes": []}
    assert records.paths() == []


def test_closing_twice_is_fine(records: Records) -> None:
    records.put(Path("/a"), RECORD)
    records.close()
    records.close()


# -- on disk alone -------------------------------------------------------------------------------------------------


def test_another_process_finds_it(tmp_path: Path) -> None:
    one, two = LocalRecords(tmp_path / "cache", warn), LocalRecords(tmp_path / "cache", warn)
    one.put(Path("/a"), RECORD)
    two.put(Path("/b"), OTHER)
    assert one.find(Path("/b")) == OTHER
    assert two.find(Path("/a")) == RECORD
    one.close()
    assert two.paths() == [Path("/a"), Path("/b")]
    two.close()


def test_asking_makes_no_folder(tmp_path: Path) -> None:
    records = LocalRecords(tmp_path / "deep" / "cache", warn)
    assert records.find(Path("/a")) is None
    records.forget(Path("/a"))
    assert list(tmp_path.iterdir()) == []
    records.put(Path("/a"), RECORD)
    names = sorted(p.name for p in (tmp_path / "deep" / "cache").iterdir())
    assert names == [".gitignore", "CACHEDIR.TAG", "index.sqlite"]
    assert (
        (tmp_path / "deep" / "cache" / "CACHEDIR.TAG")
        .read_text()
        .startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )
    records.close()


@pytest.mark.parametrize(
    "damage", [b"not a database, but long enough to look at" * 40, b"", b"SQLite format 3\0" + b"\1" * 5000]
)
def test_a_damaged_index_is_begun_anew_and_said_so(tmp_path: Path, damage: bytes) -> None:
    records = LocalRecords(tmp_path, warn)
    records.put(Path("/a"), RECORD)
    records.close()
    (tmp_path / "index.sqlite").write_bytes(damage)
    said: list[str] = []
    records = LocalRecords(tmp_path, said.append)
    assert records.find(Path("/a")) is None
    records.put(Path("/a"), OTHER)
    assert records.find(Path("/a")) == OTHER
    assert len(said) == (1 if damage else 0)
    records.close()


def test_an_index_of_other_columns_is_no_reason_to_fail(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "index.sqlite") as database:
        database.execute("create table output (path text primary key)")
    database.close()
    said: list[str] = []
    records = LocalRecords(tmp_path, said.append)
    records.put(Path("/a"), RECORD)
    assert records.find(Path("/a")) == RECORD
    assert len(said) == 1
    records.close()


def test_a_locked_index_costs_the_memory_and_not_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalRecords(tmp_path / "c", warn).put(Path("/a"), RECORD)
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0.01}))
    other = real(tmp_path / "c" / "index.sqlite", isolation_level=None)
    other.execute("begin exclusive")
    said: list[str] = []
    records = LocalRecords(tmp_path / "c", said.append)
    assert records.find(Path("/a")) is None
    records.put(Path("/b"), RECORD)
    assert said
    assert "locked" in said[0]
    other.execute("rollback")
    assert records.find(Path("/a")) == RECORD
    other.close()
    records.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    records = LocalRecords(tmp_path / "file" / "cache", said.append)
    records.put(Path("/a"), RECORD)
    assert records.find(Path("/a")) is None
    assert said

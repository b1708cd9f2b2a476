"""The store on a disk when things go wrong: what is lost is time, and it is said once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.stored import TESTS, content, everything, key, put, right, tensors

from mergeflow.errors import ResourceError
from mergeflow.store import index, leases
from mergeflow.store.local import LocalStore
from mergeflow.store.objects import Limits, Statistics

INDEX = "objects.sqlite"
ALL = [key(n) for n in "abcd"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a store with the objects ab and c and d."""
    store = LocalStore(tmp_path / "cache", pytest.fail)
    for names in ("ab", "c", "d"):
        put(store, tensors(names), title=names)
    store.close()
    return tmp_path / "cache"


def objects(folder: Path) -> list[Path]:
    return sorted(folder.glob("objects/??/*.safetensors"))


def path_of(folder: Path, name: str) -> Path:
    store = LocalStore(folder, pytest.fail)
    found = store.find([key(name)])[key(name)].path
    store.close()
    return found


def found(folder: Path) -> tuple[str, list[str]]:
    """The names of the tensors that are found and right, and the warnings on the way."""
    said: list[str] = []
    store = LocalStore(folder, said.append)
    there = right(store, ALL)
    again = right(store, ALL)
    assert there == again
    store.close()
    return "".join(n for n in "abcd" if key(n) in there), said


# -- the folder ----------------------------------------------------------------------------------------------------


def test_asking_makes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "deep" / "cache", pytest.fail)
    assert store.find(ALL) == {}
    assert store.objects() == []
    assert store.open("0" * 64) is None
    store.touch(ALL)
    store.gc(Limits(max_size=0))
    store.verify()
    assert store.statistics() == Statistics()
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_says_what_it_is(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [".gitignore", "CACHEDIR.TAG", "objects", INDEX]
    for path in objects(folder):
        assert path.parent.name == path.name[:2]
        assert len(path.stem) == 64


def test_nothing_in_an_object_tells_of_the_machine(folder: Path, tmp_path: Path) -> None:
    for path in objects(folder):
        data = path.read_bytes()
        for secret in (str(tmp_path), os.uname().nodename if hasattr(os, "uname") else "?", str(os.getpid())):
            assert secret.encode() not in data[:4096] or len(secret) < 4


def test_the_same_bytes_wherever_it_is_written(folder: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "other", pytest.fail)
    put(store, tensors("ba"), title="ab")
    store.close()
    (one,) = objects(tmp_path / "other")
    assert one.read_bytes() == (folder / one.relative_to(tmp_path / "other")).read_bytes()


# -- the index -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [None, b"", b"garbage " * 999, b"SQLite format 3\0" + b"\1" * 9000, "half", "zeros"])
def test_the_index_is_made_again_with_one_warning(folder: Path, damage: bytes | str | None) -> None:
    path = folder / INDEX
    whole = path.read_bytes()
    if damage is None:
        path.unlink()
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        half = len(whole) // 2
        path.write_bytes(whole[:half] if damage == "half" else whole[:4096] + bytes(len(whole) - 4096))
    there, said = found(folder)
    assert there == "abcd"
    assert len(said) == 1
    assert "made again from 3 objects" in said[0]
    assert found(folder) == ("abcd", [])


def test_an_index_that_is_deleted_while_it_is_open(folder: Path) -> None:
    said: list[str] = []
    store = LocalStore(folder, said.append)
    assert len(right(store, ALL)) == 4
    (folder / INDEX).unlink()
    put(store, tensors("e"))
    store.count(hits=1, misses=1, bytes_saved=1)
    assert len(right(store, ALL)) == 4 or said
    store.close()
    assert found(folder)[0] == "abcd"


def test_a_row_that_rotted_never_leads_to_other_bytes(folder: Path) -> None:
    """Two keys change places in the index: both are whole rows, and both would pass the digest of the bytes."""
    with sqlite3.connect(folder / INDEX) as database:
        for old, new in ((key("a"), "x"), (key("b"), key("a")), ("x", key("b"))):
            database.execute("update tensor set key = ? where key = ?", (new, old))
    database.close()
    there, said = found(folder)
    assert there == "abcd"
    assert len(said) == 1


@pytest.mark.parametrize("column", ["id", "size", "title", "written_ns", "used_ns", "hits", "check_sum"])
@pytest.mark.parametrize("value", ["'x'", "null", "7.5", "x'ff00'"])
def test_values_of_another_type(folder: Path, column: str, value: str) -> None:
    with sqlite3.connect(folder / INDEX) as database:
        try:
            database.execute(f"update object set {column} = {value} where title = 'c'")
        except sqlite3.IntegrityError:
            pytest.skip("SQLite keeps this out")
    database.close()
    said: list[str] = []
    store = LocalStore(folder, said.append)
    assert len(store.objects()) == 3
    assert len(right(store, ALL)) == 4
    store.touch(ALL)
    assert len(said) <= 1
    assert store.verify().damaged == ()
    store.close()


def test_a_locked_index_is_a_miss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0.01}))
    other = real(folder / INDEX, isolation_level=None)
    other.execute("begin exclusive")
    said: list[str] = []
    store = LocalStore(folder, said.append)
    assert store.find(ALL) == {}
    store.touch(ALL)
    store.count(hits=1, misses=1, bytes_saved=1)
    put(store, tensors("e"))
    with store.lease(ALL):
        assert len(list(folder.glob("leases/*.lease"))) == 1
    assert len(said) == 1
    assert "locked" in said[0]
    other.execute("rollback")
    other.close()
    assert len(right(store, ALL)) == 4
    assert store.verify().adopted == 1
    assert right(store, [key("e")])
    store.close()


def test_an_index_of_a_later_version_is_left_alone(folder: Path) -> None:
    with sqlite3.connect(folder / INDEX) as database:
        database.execute("pragma user_version = 99")
    database.close()
    before = (folder / INDEX).read_bytes()
    there, said = found(folder)
    assert (there, len(said)) == ("", 1)
    assert "version 99" in said[0]
    assert (folder / INDEX).read_bytes() == before


def test_objects_that_the_index_does_not_know_are_taken_in(folder: Path, tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "other", pytest.fail)
    put(other, tensors("e"))
    other.close()
    shutil.copytree(tmp_path / "other" / "objects", folder / "objects", dirs_exist_ok=True)
    (folder / "objects" / "zz").mkdir()
    (folder / "objects" / "zz" / "my notes.safetensors").write_text("not ours")
    store = LocalStore(folder, pytest.fail)
    assert store.find([key("e")]) == {}
    assert store.gc(Limits()).adopted == 1
    assert right(store, [key("e")])
    store.close()
    assert (folder / "objects" / "zz" / "my notes.safetensors").exists()


def test_pins_outlive_the_index(folder: Path) -> None:
    store = LocalStore(folder, pytest.fail)
    pinned = store.objects()[1].id
    store.pin(pinned)
    store.close()
    (folder / INDEX).unlink()
    store = LocalStore(folder, lambda message: None)
    assert [o.id for o in store.objects() if o.pinned] == [pinned]
    store.gc(Limits(max_size=0, grace=0))
    assert [o.id for o in store.objects()] == [pinned]
    store.close()


# -- objects -------------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def _bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(data)


def _swapped(path: Path) -> None:
    """Another object under its name: whole, of the same size, and not this one."""
    other = next(
        p for p in path.parent.parent.glob("??/*.safetensors") if p != path and p.stat().st_size == path.stat().st_size
    )
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [_cut, _cut_to_nothing, _longer, _garbage, _bit, _swapped])
@pytest.mark.parametrize("index", ["there", "gone"])
def test_a_damaged_object_is_a_miss(folder: Path, damage: Callable[[Path], None], index: str) -> None:
    path = path_of(folder, "c")
    damage(path)
    if index == "gone":
        (folder / INDEX).unlink()
    there, said = found(folder)
    assert there == "abd"
    assert not path.exists()
    assert len([m for m in said if "was damaged and is dropped" in m]) == 1
    assert len(said) == 1 + (index == "gone")
    assert found(folder) == ("abd", [])
    store = LocalStore(folder, pytest.fail)
    assert store.verify().damaged == ()
    put(store, tensors("c"), title="c")
    assert len(right(store, ALL)) == 4
    store.close()


@pytest.mark.parametrize("damage", [_cut, _cut_to_nothing, _longer, _garbage, _bit, _swapped])
def test_verify_drops_it(folder: Path, damage: Callable[[Path], None]) -> None:
    path = path_of(folder, "c")
    damage(path)
    store = LocalStore(folder, pytest.fail)
    verified = store.verify()
    assert [d.id for d in verified.damaged] == [path.stem]
    assert verified.damaged[0].reason
    assert not path.exists()
    assert (len(store.objects()), store.verify().damaged) == (2, ())
    store.close()


def test_a_sample_is_some_of_them(folder: Path) -> None:
    store = LocalStore(folder, pytest.fail)
    read_bytes: list[int] = []
    assert [store.verify(share, progress=read_bytes.append).objects for share in (0.01, 0.34, 1.0, None)] == [
        1,
        2,
        3,
        3,
    ]
    assert sum(read_bytes) >= 9 * 400
    store.close()


def test_an_object_that_somebody_deleted_is_a_miss_without_a_word(folder: Path) -> None:
    path_of(folder, "c").unlink()
    assert found(folder) == ("abd", [])
    shutil.rmtree(folder / "objects")
    assert found(folder) == ("", [])


def test_an_object_that_is_removed_while_it_is_read(folder: Path) -> None:
    reader, other = LocalStore(folder, pytest.fail), LocalStore(folder, pytest.fail)
    stored = reader.find(ALL)
    file = reader.open(stored[key("c")].object)
    assert file is not None
    other.gc(Limits(max_size=0, grace=0))
    assert content(key("c"), 400) in everything(file)
    assert reader.open(stored[key("d")].object) is None
    assert reader.find(ALL) == {}
    reader.close()
    other.close()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs file permissions")
def test_an_object_that_may_not_be_read(folder: Path) -> None:
    path = path_of(folder, "c")
    path.chmod(0)
    there, said = found(folder)
    assert (there, len(said)) == ("abd", 1)
    assert path.exists()


def test_an_object_that_cannot_be_opened_is_a_miss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with permissions, which the tests cannot take away from root."""
    path = path_of(folder, "c")
    real = os.open

    def refusing(name: str | Path, *rest: int, **more: int) -> int:
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    there, said = found(folder)
    assert (there, len(said)) == ("abd", 1)
    assert "Permission denied" in said[0]
    store = LocalStore(folder, said.append)
    assert store.verify().damaged == ()
    assert len(store.objects()) == 3
    store.close()


def test_an_object_of_a_later_format_is_left_alone(folder: Path) -> None:
    path = path_of(folder, "c")
    path.write_bytes(path.read_bytes().replace(b'"mergeflow.object":"1"', b'"mergeflow.object":"9"'))
    (folder / INDEX).unlink()
    assert found(folder)[0] == "abd"
    store = LocalStore(folder, pytest.fail)
    assert store.verify().damaged == ()
    store.gc(Limits(max_size=0, grace=0))
    assert objects(folder) == [path]
    store.close()


def test_a_store_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    store = LocalStore(tmp_path / "file" / "cache", said.append)
    assert store.find(ALL) == {}
    with pytest.raises(ResourceError):
        store.begin(tensors("a"), kind="step", title="x")
    with store.lease(ALL):
        pass
    store.count(hits=1, misses=1, bytes_saved=1)
    assert said
    store.close()


# -- builds that die -----------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from support.stored import content, tensors, key
from mergeflow.store.local import LocalStore
store = LocalStore(Path(sys.argv[1]), print)
with store.lease([key("a"), key("z")]):
    with store.begin(tensors("z", 1 << 18), kind="step", title="z") as writing:
        (t,) = writing.layout.tensors
        writing.write(memoryview(content(key("z"), t.nbytes))[: t.nbytes // 2], t.start)
        print("half", flush=True)
        time.sleep(60)
"""


def test_kill_in_the_middle_of_a_write(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": TESTS}
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"half\n"
        store = LocalStore(folder, pytest.fail)
        kept = store.gc(Limits(max_size=0, grace=0))
        assert [o.title for o in store.objects()] == ["ab"], "a lease of a build that runs holds"
        assert kept.untouchable == kept.left > 0
        assert len(list(folder.glob("objects/??/.*.part"))) == 1
        os.kill(child.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        child.wait()
    assert store.find([key("z")]) == {}
    assert right(store, [key("a")])
    collected = store.gc(Limits(max_size=0, grace=0))
    assert collected.cleared == 2
    assert store.objects() == []
    assert not list(folder.rglob("*.part"))
    assert not list(folder.rglob("*.lease"))
    put(store, tensors("z", 1 << 18))
    assert right(store, [key("z")])
    store.close()


def test_leases_of_other_machines_hold_for_a_day(folder: Path) -> None:
    store = LocalStore(folder, pytest.fail)
    with store.lease([key("a"), key("b")]):
        (lease,) = folder.glob("leases/*.lease")
        pid, started = lease.name.split("-")[2:4]
        text = lease.read_text()
    foreign = lease.with_name(f"0badcafe-12345678-{pid}-{started}-0.lease")
    foreign.write_text(text)
    store.gc(Limits(max_size=0, grace=0))
    assert [o.title for o in store.objects()] == ["ab"]
    old = time.time() - 25 * 3600
    os.utime(foreign, (old, old))
    store.gc(Limits(max_size=0, grace=0))
    assert store.objects() == []
    assert not foreign.exists()
    store.close()


@pytest.mark.parametrize("text", ["", "garbage", "mergeflow lease 1", "mergeflow lease 9\nk3:x\n"])
def test_a_damaged_lease_keeps_nothing_and_harms_nothing(folder: Path, text: str) -> None:
    store = LocalStore(folder, pytest.fail)
    with store.lease([key("c")]):
        (lease,) = folder.glob("leases/*.lease")
        lease.write_text(text)
        store.gc(Limits(max_size=0, grace=0))
        assert store.objects() == []
    store.close()


def test_a_lease_taken_while_gc_runs_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build begins after gc has looked at the leases and before it removes the first object."""
    build, collector = LocalStore(folder, pytest.fail), LocalStore(folder, pytest.fail)
    real, entered = LocalStore._evict, []

    def late(self: LocalStore, *rest: object) -> bool:
        if not entered:
            entered.append(build.lease([key("d")]))
            entered[0].__enter__()
        return real(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "_evict", late)
    collected = collector.gc(Limits(max_size=0, grace=0))
    assert [o.title for o in collector.objects()] == ["d"]
    assert collected.left == collected.untouchable
    assert right(build, [key("d")])
    entered[0].__exit__(None, None, None)
    build.close()
    collector.close()


def test_an_object_that_is_made_again_while_gc_runs_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gc has listed it; then another gc removes it, a build takes its lease and stores it anew."""
    build, collector = LocalStore(folder, pytest.fail), LocalStore(folder, pytest.fail)
    gone = next(o.id for o in build.objects() if o.title == "d")
    held = build.lease([key("d")])
    names, evict, done = leases.Leases.names, LocalStore._evict, []

    def removed_and_leased(self: leases.Leases) -> frozenset[str]:
        if not done:
            done.append(build.remove(gone))
            held.__enter__()
        return names(self)

    def made_again(self: LocalStore, *rest: object) -> bool:
        if len(done) == 1:
            done.append(put(build, tensors("d"), title="d") == gone)
        return evict(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(leases.Leases, "names", removed_and_leased)
    monkeypatch.setattr(LocalStore, "_evict", made_again)
    collector.gc(Limits(max_size=0, grace=0))
    assert done == [True, True]
    assert [o.id for o in build.objects()] == [gone]
    assert right(build, [key("d")])
    held.__exit__(None, None, None)
    build.close()
    collector.close()


def test_reading_the_store_needs_neither_numpy_nor_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import mergeflow.store.records\n"
        "from mergeflow.store.local import LocalStore\n"
        f"s = LocalStore(Path({str(folder)!r}), print); assert len(s.objects()) == 3; s.find(['k3:x']); s.close()\n"
        "assert not {'torch', 'numpy', 'networkx', 'pydantic', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_on_the_format_names_all_there_is() -> None:
    page = (Path(__file__).parents[2] / "cache/README.md").read_text(encoding="utf-8")
    for table, columns in re.findall(r"exists (\w+) \((.*?)\)(?: without rowid)?;", index._SCHEMA, re.DOTALL):
        (line,) = re.findall(rf"^\| `{table}` \| (.*) \|$", page, re.MULTILINE)
        assert re.findall(r"(\w+) (?:text|integer|blob)", columns)[:1] == re.findall(r"`(\w+)`", line)[:1]
        for column in re.findall(r"(\w+) (?:text|integer|blob)", columns):
            assert f"`{column}`" in line
    assert f"`{index.NAME}`" in page
    assert f"format `{index.VERSION}` in `pragma user_version`" in page
    for name in ("object", "kind", "title", "numerics", "keys", "payloads"):
        assert f"| `mergeflow.{name}` |" in page
    assert leases.FIRST_LINE in page

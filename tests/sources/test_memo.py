"""The memo of file contents: never a stale entry, and losing it costs nothing but time."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.builds import Heard
from support.checkpoints import any_bits, numbers, write

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.events import Event, PhaseStarted, Progressed, silent
from mergeflow.formats.files import Fingerprint, ReadFile, fingerprint
from mergeflow.sources import memo as memos
from mergeflow.sources.identify import Identified, identify
from mergeflow.sources.memo import Known, Memo, quiet_since, wait_until_quiet

KNOWN = Known(b"m" * 32, (b"d" * 32, b"e" * 32), (b"p" * 32, b"q" * 32), (0, 3), b"low", b"high", b"samples")
AT = Fingerprint(2**64 - 1, 2**63, 10, 11, 12)


def warn(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def memo(tmp_path: Path) -> Memo:
    return Memo(tmp_path / "memo", warn)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that has been quiet for long enough."""
    path = write(tmp_path / "a.safetensors", {"w": numbers("F32", [1, 2, 3])})
    age(path)
    return path


def age(path: Path, seconds: float = 0.04) -> None:
    time.sleep(seconds)
    assert quiet_since(fingerprint(path.stat()), path)


def hashed(path: Path, memo: Memo) -> tuple[Identified, bool]:
    """What is known of the file, and whether it was read for that."""
    heard = Heard()
    found = identify(path, memo, heard)
    return found, any(isinstance(e, PhaseStarted) for e in heard)


# -- the database --------------------------------------------------------------------------------------------------


def test_what_is_remembered_is_found_as_it_was(memo: Memo) -> None:
    assert memo.find(AT) is None
    memo.remember(AT, KNOWN)
    assert memo.find(AT) == KNOWN
    memo.remember_sha256(AT, "ab" * 32)
    assert memo.find_sha256(AT) == "ab" * 32


@pytest.mark.parametrize("field", range(5))
def test_any_other_fingerprint_is_another_file(memo: Memo, field: int) -> None:
    memo.remember(AT, KNOWN)
    memo.remember_sha256(AT, "ab" * 32)
    other = Fingerprint(*(value - 1 if i == field else value for i, value in enumerate(AT)))
    assert memo.find(other) is None
    assert memo.find_sha256(other) is None


def test_a_file_has_one_entry(memo: Memo, tmp_path: Path) -> None:
    memo.remember(AT, KNOWN)
    memo.remember(AT._replace(mtime_ns=99), KNOWN)
    assert memo.find(AT) is None
    memo.close()
    with sqlite3.connect(next((tmp_path / "memo").glob("*.sqlite"))) as database:
        assert database.execute("select count(*) from content").fetchone() == (1,)
    database.close()


@pytest.mark.parametrize("column", ["model", "digests", "payloads", "nonfinite", "low", "high", "samples"])
@pytest.mark.parametrize("rot", [lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]), lambda blob: blob[1:], lambda _: None])
def test_bit_rot_in_the_database_is_a_miss(
    memo: Memo, tmp_path: Path, column: str, rot: Callable[[bytes], object]
) -> None:
    memo.remember(AT, KNOWN)
    memo.close()
    with sqlite3.connect(next((tmp_path / "memo").glob("*.sqlite"))) as database:
        (blob,) = database.execute(f"select {column} from content").fetchone()
        database.execute(f"update content set {column} = ?", (rot(blob),))
    database.close()
    assert Memo(tmp_path / "memo", warn).find(AT) is None


@pytest.mark.parametrize("rotten", ["bb" + "ab" * 31, None, 7, b"ab" * 32])
@pytest.mark.parametrize("part", ["whole", "body"])
def test_bit_rot_in_a_sha256_is_a_miss(memo: Memo, tmp_path: Path, part: memos.Part, rotten: object) -> None:
    memo.remember_sha256(AT, "ab" * 32, part)
    memo.close()
    with sqlite3.connect(next((tmp_path / "memo").glob("*.sqlite"))) as database:
        database.execute(f"update {part} set sha256 = ?", (rotten,))
    database.close()
    assert Memo(tmp_path / "memo", warn).find_sha256(AT, part) is None


def test_rows_that_changed_places_are_a_miss(memo: Memo, tmp_path: Path) -> None:
    memo.remember(AT, KNOWN)
    memo.remember_sha256(AT, "ab" * 32)
    memo.close()
    with sqlite3.connect(next((tmp_path / "memo").glob("*.sqlite"))) as database:
        database.execute("update content set inode = 5")
        database.execute("update whole set inode = 5")
    database.close()
    again = Memo(tmp_path / "memo", warn)
    assert again.find(AT._replace(inode=5)) is None
    assert again.find_sha256(AT._replace(inode=5)) is None


@pytest.mark.parametrize("keep", [0, 16, 100, 4096])
def test_a_damaged_database_is_begun_anew(memo: Memo, model: Path, tmp_path: Path, keep: int) -> None:
    """Damaged after so many bytes: 16 are the magic, 100 the header, 4096 the first page."""
    assert hashed(model, memo)[1]
    memo.close()
    path = next((tmp_path / "memo").glob("*.sqlite"))
    path.write_bytes(path.read_bytes()[:keep] + b"\7" * (path.stat().st_size - keep))
    said: list[str] = []
    again = Memo(tmp_path / "memo", said.append)
    assert hashed(model, again)[1]
    assert len(said) == 1
    assert "damaged" in said[0]
    assert not hashed(model, again)[1]
    again.close()


def test_a_page_damaged_in_the_middle(memo: Memo, model: Path, tmp_path: Path) -> None:
    for i in range(200):
        memo.remember(AT._replace(inode=i), KNOWN)
    before, _ = hashed(model, memo)
    memo.close()
    path = next((tmp_path / "memo").glob("*.sqlite"))
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xa5" * (len(raw) - 4096)
    path.write_bytes(raw)
    said: list[str] = []
    again = Memo(tmp_path / "memo", said.append)
    after, _ = hashed(model, again)
    assert after.model == before.model
    assert said
    again.close()


def test_a_folder_that_cannot_be_used_is_said_once_and_costs_nothing_else(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    memo = Memo(tmp_path / "file" / "memo", said.append)
    assert hashed(model, memo)[1]
    assert hashed(model, memo)[1]
    assert len(said) == 1


def test_a_locked_database_is_no_error(
    tmp_path: Path, model: Path, memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo.close()
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0.01}))
    other = real(next((tmp_path / "memo").glob("*.sqlite")), isolation_level=None)
    other.execute("begin exclusive")
    said: list[str] = []
    assert hashed(model, Memo(tmp_path / "memo", said.append))[1]
    assert said
    other.close()


# -- when an entry may be written, and when it may be used ------------------------------------------------------------


def test_a_quiet_file_is_read_once(memo: Memo, model: Path) -> None:
    first, read = hashed(model, memo)
    assert read
    again, read = hashed(model, memo)
    assert not read
    assert again.known == first.known


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Without the pause that lets a file settle before it is read, and with a clock of so coarse a grain that all was
    written just now, however slow the machine is; until this is called."""
    grain = memos._FINE_GRAIN
    monkeypatch.setattr("mergeflow.sources.identify.wait_until_quiet", lambda path: None)
    monkeypatch.setattr(memos, "_FINE_GRAIN", 3600 * 10**9)
    return lambda: monkeypatch.setattr(memos, "_FINE_GRAIN", grain)


def test_a_file_written_just_now_is_left_to_settle_and_then_remembered(memo: Memo, model: Path) -> None:
    model.write_bytes(model.read_bytes())
    assert hashed(model, memo)[1]
    assert not hashed(model, memo)[1]


def test_nothing_waits_for_a_file_of_the_future_or_one_long_settled(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("mergeflow.sources.memo.time.sleep", slept.append)
    os.utime(model, ns=(0, time.time_ns() + 10**12))
    wait_until_quiet(model)
    wait_until_quiet(model.with_name("none"))
    assert slept == []


def test_a_file_written_just_now_is_not_trusted(memo: Memo, model: Path, later: Callable[[], None]) -> None:
    """It could be written again within the same tick of the clock, unseen."""
    model.write_bytes(model.read_bytes())
    assert hashed(model, memo)[1]
    later()
    age(model)
    assert hashed(model, memo)[1]  # the first reading left no entry
    assert not hashed(model, memo)[1]


@pytest.mark.parametrize(
    ("kind", "age_ns", "quiet"),
    [
        ("ext4", 19_000_000, False),
        ("ext4", 21_000_000, True),
        ("overlay", 21_000_000, True),
        ("nfs4", 1_900_000_000, False),
        ("nfs4", 2_100_000_000, True),
        ("vfat", 1_000_000_000, False),
        ("", 1_000_000_000, False),
        ("ext4", -5_000_000_000, False),  # stamped by another machine's clock, which is ahead
    ],
)
def test_quiet_is_longer_than_the_grain_of_the_clock(
    monkeypatch: pytest.MonkeyPatch, kind: str, age_ns: int, quiet: bool
) -> None:
    monkeypatch.setattr(memos, "_file_system", lambda path: kind)
    now = 1_800_000_000_000_000_000
    old = now - 10**12
    for mtime, ctime in ((now - age_ns, old), (old, now - age_ns)):
        assert quiet_since(Fingerprint(1, 1, 1, mtime, ctime), Path("x"), now) == quiet


def test_the_file_system_is_known_here(tmp_path: Path) -> None:
    assert memos._file_system(tmp_path) != ""
    assert memos._file_system(Path("/proc/self/status")) == "proc"


def test_same_size_and_restored_mtime_do_not_deceive(memo: Memo, model: Path) -> None:
    first, _ = hashed(model, memo)
    status = model.stat()
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    with model.open("r+b") as file:
        file.write(raw)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert model.stat().st_mtime_ns == status.st_mtime_ns
    assert model.stat().st_size == status.st_size
    age(model)
    second, read = hashed(model, memo)
    assert read
    assert second.model != first.model


def test_a_file_replaced_by_rename(memo: Memo, model: Path) -> None:
    first, _ = hashed(model, memo)
    status = model.stat()
    other = write(model.with_name("new"), {"w": numbers("F32", [1, 2, 4])})
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(model)
    age(model)
    second, read = hashed(model, memo)
    assert read
    assert second.model != first.model


def test_a_renamed_file_is_known_or_read_again_but_never_mistaken(memo: Memo, model: Path) -> None:
    first, _ = hashed(model, memo)
    moved = model.rename(model.with_name("moved.safetensors"))
    age(moved)
    assert hashed(moved, memo)[0].model == first.model


def test_a_hard_link_is_the_same_file(memo: Memo, model: Path) -> None:
    os.link(model, model.with_name("link.safetensors"))
    age(model)
    first, _ = hashed(model, memo)
    again, read = hashed(model.with_name("link.safetensors"), memo)
    assert not read
    assert again.model == first.model


def changing(path: Path, times: int) -> Heard:
    """A listener that writes to the file while it is being hashed, so many times."""

    class Changing(Heard):
        left = times

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Progressed) and self.left:
                self.left -= 1
                with path.open("r+b") as file:
                    file.seek(-1, os.SEEK_END)
                    file.write(bytes([self.left % 256]))
                time.sleep(0.01)

    return Changing()


def test_a_file_that_changes_while_it_is_read_is_read_again(memo: Memo, model: Path, later: Callable[[], None]) -> None:
    found = identify(model, memo, changing(model, 1))
    assert fingerprint(model.stat()) in found.at
    later()
    age(model)
    fresh, read = hashed(model, memo)
    assert read  # what was read a moment after a change is not remembered
    assert fresh.model == found.model


def test_a_file_that_keeps_changing_is_refused(memo: Memo, model: Path) -> None:
    with pytest.raises(IntegrityError, match="changes while it is being read"):
        identify(model, memo, changing(model, 1000))


def test_a_file_cut_while_it_is_read(memo: Memo, tmp_path: Path) -> None:
    path = write(tmp_path / "big.safetensors", {"w": any_bits(np.random.default_rng(0), "U8", (8 << 20,))})

    def cut(event: Event) -> None:
        if isinstance(event, Progressed) and path.stat().st_size > 1 << 20:
            os.truncate(path, 1 << 20)

    with pytest.raises(IntegrityError, match="it was cut while being read"):
        identify(path, memo, cut)


def test_a_missing_file(memo: Memo, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="there is no such file"):
        identify(tmp_path / "none.safetensors", memo, silent)
    with pytest.raises(MissingInput):
        ReadFile(tmp_path)


def test_an_entry_that_does_not_fit_the_header_is_not_used(memo: Memo, model: Path) -> None:
    memo.remember(fingerprint(model.stat()), KNOWN)  # of two tensors; the file has one
    found, read = hashed(model, memo)
    assert read
    assert len(found.known.digests) == 1


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_digest_does_not_depend_on_the_threads(tmp_path: Path, workers: int) -> None:
    rng = np.random.default_rng(3)
    sizes = {"F16": 1_500_001, "F32": 0, "BF16": 3, "I64": 300_000, "U16": 1 << 19, "BOOL": 77, "F64": 9}
    tensors = {f"t.{code}": any_bits(rng, code, (n,), finite=False) for code, n in sizes.items()}
    path = write(tmp_path / "m.safetensors", tensors)
    known = identify(path, Memo(tmp_path / f"memo{workers}", warn), silent, workers=workers).known
    reference = identify(path, Memo(tmp_path / "one", warn), silent, workers=1).known
    assert known == reference

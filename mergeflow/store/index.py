"""The index of the objects: which object holds which key, when each was used, and how often the store was of use.

All but the uses can be made again from the objects, and is, when the file is missing or damaged. Each row carries a
check sum: a page that rotted must not lead from a key to the bytes of another one.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mergeflow.store.database import Damaged, Database, transaction
from mergeflow.store.objectfile import Held, ObjectFile, object_path
from mergeflow.store.objects import ObjectId, ObjectInfo, Statistics, Stored
from mergeflow.tensors import BY_CODE, DType

VERSION = 1
NAME = "objects.sqlite"
_AT_ONCE = 900  # parameters of one query: every SQLite takes 999
_SCHEMA = """
create table if not exists object (
  number integer primary key autoincrement, id text not null unique, kind text, title text, tensors integer,
  size integer, written_ns integer, check_sum integer, used_ns integer, hits integer);
create table if not exists tensor (
  key text, object integer, start integer, nbytes integer, dtype text, shape text, payload blob, check_sum integer,
  primary key (key, object)) without rowid;
create index if not exists tensors_of_object on tensor (object);
create table if not exists statistic (name text primary key, value integer) without rowid;
"""
_FIND = "select object, key, start, nbytes, dtype, shape, payload, check_sum from tensor where key in (?)"
_HOLDERS = "select number, id, size from object"
_HOLDING = "select id from object where number in (select object from tensor where key in (?))"
_KEYS = "select key from tensor where object in (select number from object where id = ?)"
_COUNT = "insert into statistic values (?, ?) on conflict (name) do update set value = value + excluded.value"
_COUNTED = ("hits", "misses", "bytes_saved")
T = TypeVar("T")


class Row(NamedTuple):
    """A tensor in the index, and the size that its object's file must have."""

    key: str
    size: int
    stored: Stored


class ObjectIndex:
    """`objects` reads the objects that there are, with the time each was written, for an index that is begun anew."""

    def __init__(
        self, folder: Path, warn: Callable[[str], None], objects: Callable[[], Iterable[tuple[ObjectFile, int]]]
    ) -> None:
        self._folder, self._objects = folder, objects
        unused = "intermediates are not reused"
        self._database = Database(folder / NAME, VERSION, _SCHEMA, warn=warn, unused=unused, fill=self._fill)

    def close(self) -> None:
        self._database.close()

    def begin(self) -> None:
        """Make the index, when it is missing, from what lies there."""
        self._database.do(lambda db: None, create=True)

    # -- reading ---------------------------------------------------------------------------------------------------

    def find(self, keys: Collection[str]) -> list[Row]:
        """All tensors of these keys; of one key in the order of the objects' ids."""

        def query(db: sqlite3.Connection) -> list[Row]:
            with transaction(db, "deferred"):
                rows = [row for some in _batches(keys) for row in db.execute(_filled(_FIND, some), some)]
                objects = db.execute(_HOLDERS).fetchall()
            holders = {
                number: _Holder(i, size, object_path(self._folder, i)) for number, i, size in objects if type(i) is str
            }
            kinds: dict[tuple[str, str], tuple[DType, tuple[int, ...]]] = {}
            known = [(holders[row[0]], row) for row in rows if row[0] in holders]
            known.sort(key=lambda pair: pair[0].id)
            return [_row(holder, row, kinds) for holder, row in known]

        return self._database.do(query, create=False) or []

    def objects(self) -> list[ObjectInfo]:
        """By id; none of them pinned, which the index does not know."""

        def query(db: sqlite3.Connection) -> list[ObjectInfo]:
            rows = db.execute(
                "select id, kind, title, tensors, size, written_ns, check_sum, used_ns, hits from object order by id"
            )
            return [_info(row) for row in rows]

        return self._database.do(query, create=False) or []

    def holding(self, keys: Collection[str]) -> frozenset[ObjectId]:
        """The objects that hold any of these."""

        def query(db: sqlite3.Connection) -> frozenset[ObjectId]:
            return frozenset(row[0] for some in _batches(keys) for row in db.execute(_filled(_HOLDING, some), some))

        return self._database.do(query, create=False) or frozenset()

    def agrees(self, file: ObjectFile) -> bool:
        """Whether the rows of an object are those that its file asks for."""
        rows = {(row.key, row.stored) for row in self.find([held.key for held in file.held])}
        path = object_path(self._folder, file.id)
        return all(
            (h.key, Stored(file.id, path, h.spec.start, h.spec.nbytes, h.spec.dtype, h.spec.shape, h.payload)) in rows
            for h in _first_of_each_key(file)
        )

    def statistics(self) -> Statistics:
        rows = self._database.do(lambda db: db.execute("select name, value from statistic").fetchall(), create=False)
        return Statistics(**{name: value for name, value in rows or () if name in _COUNTED and type(value) is int})

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, file: ObjectFile, written_ns: int) -> None:
        def insert(db: sqlite3.Connection) -> None:
            with transaction(db):
                _insert(db, file, written_ns)

        self._database.do(insert, create=True)

    def forget(self, object_id: ObjectId) -> None:
        """The object's rows, unless its file is there after all: another process may just have made it again."""
        self.remove(object_id, lambda keys: not object_path(self._folder, object_id).exists())

    def remove(self, object_id: ObjectId, removal: Callable[[frozenset[str]], bool]) -> bool:
        """The object's rows, if `removal`, which is told their keys, does its part, while nobody else writes here."""

        def delete(db: sqlite3.Connection) -> bool:
            with transaction(db):
                removed = removal(frozenset(row[0] for row in db.execute(_KEYS, (object_id,))))
                if removed:
                    _delete(db, object_id)
                return removed

        done = self._database.do(delete, create=False)
        return removal(frozenset()) if done is None else done  # an index that cannot be used does not keep a file

    def exclusively(self, action: Callable[[], T]) -> T:
        """The action's result, while nobody else writes here; without an index nobody can be kept out."""
        done: list[T] = []

        def act(db: sqlite3.Connection) -> None:
            with transaction(db):
                done.extend([] if done else [action()])  # not twice, should the index be damaged

        self._database.do(act, create=True)
        return done[0] if done else action()

    def use(self, keys: Collection[str], now_ns: int) -> None:
        """One more use of each object that holds any of these."""
        ids = self.holding(keys)

        def update(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.executemany(
                    "update object set used_ns = max(used_ns, ?), hits = hits + 1 where id = ?",
                    [(now_ns, i) for i in sorted(ids)],
                )

        if ids:
            self._database.do(update, create=False)

    def count(self, amounts: Statistics) -> None:
        def update(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.executemany(_COUNT, [(name, getattr(amounts, name)) for name in _COUNTED])

        self._database.do(update, create=True)

    def _fill(self, db: sqlite3.Connection) -> None:
        found = 0
        for file, written_ns in self._objects():
            _insert(db, file, written_ns)
            found += 1
        if found:
            self._database.say(
                f"{self._folder.name}/{NAME} was missing or damaged; it was made again from {found} objects"
            )


def _insert(db: sqlite3.Connection, file: ObjectFile, written_ns: int) -> None:
    """Rows of an object; its uses stay when it was known already."""
    facts = (file.id, file.kind, file.title, len(file.held), file.size, written_ns)
    before = db.execute(
        "select used_ns, hits from object where id = ? and used_ns > ?", (file.id, written_ns)
    ).fetchone()
    known = before or (written_ns, 0)
    _delete(db, file.id)
    number = db.execute(
        "insert into object (id, kind, title, tensors, size, written_ns, check_sum, used_ns, hits) "
        "values (?,?,?,?,?,?,?,?,?)",
        (*facts, _check(facts), *known),
    ).lastrowid
    rows = []
    for key, spec, payload in _first_of_each_key(file):
        shape = ",".join(map(str, spec.shape))
        place = (spec.start, spec.nbytes, spec.dtype.code, shape, payload)
        rows.append((key, number, *place, _check_tensor(file.id, file.size, key, *place)))
    db.executemany("insert into tensor values (?,?,?,?,?,?,?,?)", sorted(rows))


def _delete(db: sqlite3.Connection, object_id: ObjectId) -> None:
    db.execute("delete from tensor where object in (select number from object where id = ?)", (object_id,))
    db.execute("delete from object where id = ?", (object_id,))


def _first_of_each_key(file: ObjectFile) -> Iterable[Held]:
    """Tensors that are equal have equal keys; one of them answers for all."""
    return {held.key: held for held in reversed(file.held)}.values()


class _Holder(NamedTuple):
    """An object as a row of a tensor needs it."""

    id: ObjectId
    size: int
    path: Path


def _row(holder: _Holder, row: tuple[Any, ...], kinds: dict[tuple[str, str], tuple[DType, tuple[int, ...]]]) -> Row:
    """`kinds` are the dtypes and shapes seen so far: of thousands of tensors, few differ."""
    _, key, start, nbytes, dtype, shape, payload, check = row
    if _check_tensor(holder.id, holder.size, *row[1:7]) != check:
        raise Damaged("a row that fails its check")
    kind = kinds.get((dtype, shape))
    if kind is None:
        kind = kinds[dtype, shape] = BY_CODE[dtype], tuple(map(int, shape.split(","))) if shape else ()
    return Row(key, holder.size, Stored(holder.id, holder.path, start, nbytes, *kind, payload))


def _info(row: tuple[Any, ...]) -> ObjectInfo:
    *facts, check, used_ns, hits = row
    if _check(tuple(facts)) != check or type(used_ns) is not int or type(hits) is not int:
        raise Damaged("a row that fails its check")
    object_id, kind, title, tensors, size, written_ns = facts
    return ObjectInfo(object_id, kind, title, tensors, size, written_ns, used_ns, hits, pinned=False)


def _check(fields: tuple[Any, ...]) -> int:
    return zlib.crc32(repr(fields).encode())


def _check_tensor(
    object_id: ObjectId, size: int, key: str, start: int, nbytes: int, dtype: str, shape: str, payload: object
) -> int:
    text = f"{object_id} {size} {key} {start} {nbytes} {dtype} {shape}"
    return zlib.crc32(payload, zlib.crc32(text.encode())) if isinstance(payload, bytes) else -1


def _batches(keys: Collection[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _filled(query: str, values: list[str]) -> str:
    """With as many places as there are values."""
    return query.replace("?", ",".join("?" * len(values)))

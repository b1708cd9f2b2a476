"""What a build may expect of a store, with a disk or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load
from support.stored import content, everything, key, payload, put, read, right, tensors

from mergeflow.store.local import LocalStore
from mergeflow.store.memory import MemoryStore
from mergeflow.store.objects import Keyed, Limits, Statistics, Store
from mergeflow.tensors import BY_LABEL, DType

HOUR = 3600


@dataclass
class Clock:
    """Seconds since the epoch; stands still unless moved."""

    seconds: float = 1_700_000_000.0

    def __call__(self) -> int:
        return int(self.seconds * 1e9)


@dataclass
class Given:
    """A store, its clock, what it warned of, and how to damage a byte of an object."""

    store: Store
    clock: Clock
    damage: Callable[[str, int], None]
    said: list[str] = field(default_factory=list)


@pytest.fixture(params=["memory", "local"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Given]:
    clock, said = Clock(), []
    if request.param == "memory":
        memory = MemoryStore(said.append, clock)

        def damage(object_id: str, offset: int) -> None:
            memory._objects[object_id].data[offset] ^= 1

        made = Given(memory, clock, damage, said)
    else:
        folder = tmp_path / "cache"

        def damage(object_id: str, offset: int) -> None:
            path = folder / "objects" / object_id[:2] / f"{object_id}.safetensors"
            data = bytearray(path.read_bytes())
            data[offset] ^= 1
            path.write_bytes(data)

        made = Given(LocalStore(folder, said.append, clock), clock, damage, said)
    yield made
    made.store.close()


def ids(store: Store) -> set[str]:
    return {o.id for o in store.objects()}


# -- putting and finding -------------------------------------------------------------------------------------------


def test_nothing_is_known_at_first(given: Given) -> None:
    store = given.store
    assert store.find([key("a")]) == {}
    assert store.find([]) == {}
    assert store.objects() == []
    assert store.open("0" * 64) is None
    assert not store.remove("0" * 64)
    assert store.statistics() == Statistics(0, 0, 0)
    assert store.gc(Limits(max_size=0)).removed == ()
    assert store.verify().objects == 0
    store.touch([key("a")])
    store.unpin("0" * 64)
    store.reject("0" * 64)


def test_what_is_put_is_found_and_is_a_safetensors_file(given: Given) -> None:
    store = given.store
    wanted = [
        Keyed(key("w"), "w", DType.F32, (3, 4)),
        Keyed(key("双"), '双 "\\', DType.F64, (2,)),
        Keyed(key("n"), "n", DType.F32, ()),
        Keyed(key("e"), "e", DType.F32, (0, 4)),
        Keyed(key("i"), "i", DType.I64, (1,)),
    ]
    object_id = put(store, wanted, title='half, of "x"')
    found = store.find([t.key for t in wanted] + [key("other")])
    assert found.keys() == {t.key for t in wanted}
    file = store.open(object_id)
    assert file is not None
    by_library = load(everything(file))
    for t in wanted:
        stored = found[t.key]
        assert (stored.object, stored.dtype, stored.shape) == (object_id, t.dtype, t.shape)
        data = content(t.key, stored.nbytes)
        assert stored.nbytes == int(np.prod(t.shape)) * t.dtype.size
        assert read(store, stored) == data
        assert stored.payload == payload(data)
        assert by_library[t.name].shape == t.shape
        assert by_library[t.name].tobytes() == data


def test_tensors_of_several_chunks_and_of_every_dtype(given: Given) -> None:
    store = given.store
    big = [Keyed(key("big"), "big", DType.F32, (700_001,)), Keyed(key("mib"), "mib", DType.U8, (1 << 20,))]
    small = [Keyed(key(d.label), d.label, d, (7,)) for d in BY_LABEL.values()]
    put(store, big + small)
    assert right(store, [t.key for t in big + small]).keys() == {t.key for t in big + small}
    assert store.verify().damaged == ()


def test_an_object_is_not_there_before_it_is_committed(given: Given) -> None:
    store = given.store
    with store.begin(tensors("ab"), kind="step", title="x") as writing:
        for t in writing.layout.tensors:
            writing.write(memoryview(bytes(t.nbytes)), t.start)
        assert store.find([key("a")]) == {}
    assert store.find([key("a")]) == {}
    assert store.objects() == []
    put(store, tensors("ab"))
    assert len(right(store, [key("a"), key("b")])) == 2


def test_equal_objects_are_one(given: Given) -> None:
    store = given.store
    one = put(store, tensors("ab"))
    assert put(store, tensors("ba")) == one
    assert put(store, tensors("ab"), title="another") != one
    assert put(store, tensors("ac")) != one
    assert len(store.objects()) == 3
    assert len(right(store, [key(n) for n in "abc"])) == 3


def test_two_writers_of_one_object(given: Given) -> None:
    store = given.store
    with (
        store.begin(tensors("a"), kind="step", title="x") as one,
        store.begin(tensors("a"), kind="step", title="x") as two,
    ):
        for writing in (one, two):
            (t,) = writing.layout.tensors
            data = content(key("a"), t.nbytes)
            writing.write(memoryview(data), t.start)
        assert one.commit([payload(data)]) == two.commit([payload(data)])
    assert len(store.objects()) == 1
    assert right(store, [key("a")])


def test_equal_keys_in_one_object_and_in_several(given: Given) -> None:
    store = given.store
    tied = [Keyed(key("t"), name, DType.F32, (5,)) for name in ("x", "y")]
    first = put(store, tied)
    second = put(store, [*tied[:1], *tensors("a", 5)])
    assert right(store, [key("t"), key("a")]).keys() == {key("t"), key("a")}
    for gone in (first, second):
        assert right(store, [key("t")])
        assert store.remove(gone)
    assert store.find([key("t")]) == {}


def keyed(*pairs: tuple[str, str]) -> list[Keyed]:
    return [Keyed(k, name, DType.F32, (1,)) for k, name in pairs]


@pytest.mark.parametrize("wanted", [keyed(), keyed(("a", "x"), ("b", "x")), keyed(("k3: a", "x")), keyed(("", "x"))])
def test_what_cannot_be_an_object(given: Given, wanted: list[Keyed]) -> None:
    with pytest.raises(ValueError):
        given.store.begin(wanted, kind="step", title="x")


def test_payloads_must_fit_the_tensors(given: Given) -> None:
    for wrong in ([], [b""], [bytes(32)] * 3, [bytes(31), bytes(32)]):
        with given.store.begin(tensors("ab"), kind="step", title="x") as writing, pytest.raises(ValueError):
            writing.commit(wrong)
    assert given.store.objects() == []


# -- damage --------------------------------------------------------------------------------------------------------


def test_a_rejected_object_is_gone_with_one_warning(given: Given) -> None:
    store = given.store
    object_id, other = put(store, tensors("ab")), put(store, tensors("c"))
    store.reject(object_id)
    store.reject(object_id)
    assert len(given.said) == 1
    assert object_id[:8] in given.said[0]
    assert "damaged" in given.said[0]
    assert ids(store) == {other}
    assert store.find([key("a"), key("c")]).keys() == {key("c")}


def test_a_damaged_byte_is_seen_by_the_reader_and_by_verify(given: Given) -> None:
    store = given.store
    good, bad = put(store, tensors("a")), put(store, tensors("bc"))
    stored = store.find([key("c")])[key("c")]
    given.damage(bad, stored.offset + stored.nbytes - 1)
    assert right(store, [key("a"), key("b")]).keys() == {key("a"), key("b")}
    verified = store.verify()
    assert (verified.objects, verified.tensors) == (2, 3)
    assert [d.id for d in verified.damaged] == [bad]
    assert verified.damaged[0].title == "a step"
    assert ids(store) == {good}
    assert store.verify().damaged == ()


@pytest.mark.parametrize("offset", [0, 7, 30, 100, 400])
def test_a_damaged_header_is_seen_by_verify(given: Given, offset: int) -> None:
    object_id = put(given.store, tensors("ab"))
    given.damage(object_id, offset)
    assert [d.id for d in given.store.verify().damaged] == [object_id]
    assert given.store.objects() == []


def test_damage_that_a_reader_meets_is_a_miss(given: Given) -> None:
    store = given.store
    object_id = put(store, tensors("ab"))
    given.damage(object_id, store.find([key("a")])[key("a")].offset)
    assert right(store, [key("a")]) == {}
    assert store.find([key("b")]) == {}
    assert len(given.said) == 1
    put(store, tensors("ab"))
    assert len(right(store, [key("a"), key("b")])) == 2


# -- what is known of objects --------------------------------------------------------------------------------------


def test_objects_say_what_they_are(given: Given) -> None:
    store, clock = given.store, given.clock
    object_id = put(store, tensors("ab"), title="lewd", kind="partial")
    (o,) = store.objects()
    assert (o.id, o.title, o.kind, o.tensors, o.hits, o.pinned) == (object_id, "lewd", "partial", 2, 0, False)
    assert o.written_ns == o.used_ns == clock()
    file = store.open(object_id)
    assert file is not None
    assert o.size == len(everything(file))
    clock.seconds += 60
    store.touch([key("a"), key("b"), key("unknown")])
    (o,) = store.objects()
    assert (o.hits, o.used_ns - o.written_ns) == (1, 60 * 10**9)


def test_statistics_add_up(given: Given) -> None:
    given.store.count(hits=3, misses=1, bytes_saved=10**12)
    given.store.count(hits=1, misses=0, bytes_saved=1)
    assert given.store.statistics() == Statistics(4, 1, 10**12 + 1)


# -- collecting ----------------------------------------------------------------------------------------------------


def three(given: Given) -> tuple[list[str], int]:
    """Objects a, b, c, an hour apart, the last one written two hours ago; and their equal size."""
    made = []
    for name in "abc":
        made.append(put(given.store, tensors(name)))
        given.clock.seconds += HOUR
    given.clock.seconds += HOUR
    sizes = {o.size for o in given.store.objects()}
    assert len(sizes) == 1
    return made, sizes.pop()


@pytest.mark.parametrize(("fit", "left"), [(3, "abc"), (2, "bc"), (1, "c"), (0, "")])
def test_the_least_recently_used_go_first(given: Given, fit: int, left: str) -> None:
    made, size = three(given)
    collected = given.store.gc(Limits(max_size=fit * size))
    assert [o.id for o in collected.removed] == made[: 3 - fit]
    assert (collected.left, collected.freed, collected.untouchable) == (fit * size, (3 - fit) * size, 0)
    assert ids(given.store) == set(made[3 - fit :])
    assert right(given.store, [key(n) for n in "abc"]).keys() == {key(n) for n in left}
    assert given.store.gc(Limits(max_size=fit * size)).removed == ()


def test_one_byte_less_than_fits_removes_one(given: Given) -> None:
    made, size = three(given)
    assert [o.id for o in given.store.gc(Limits(max_size=3 * size - 1)).removed] == made[:1]


def test_use_counts_and_not_age(given: Given) -> None:
    made, size = three(given)
    given.store.touch([key("a")])
    assert [o.id for o in given.store.gc(Limits(max_size=size)).removed] == [made[1], made[2]]


def test_equal_times_go_in_the_order_of_their_ids(given: Given) -> None:
    made = [put(given.store, tensors(name)) for name in "abcdef"]
    given.clock.seconds += HOUR
    collected = given.store.gc(Limits(max_size=0))
    assert [o.id for o in collected.removed] == sorted(made)


def test_what_was_not_used_for_long(given: Given) -> None:
    made, size = three(given)  # used 4, 3 and 2 hours ago
    assert [o.id for o in given.store.gc(Limits(older_than=3.5 * HOUR)).removed] == made[:1]
    assert given.store.gc(Limits(older_than=3 * HOUR)).removed == ()  # not longer than that
    given.store.touch([key("b")])
    assert [o.id for o in given.store.gc(Limits(older_than=HOUR, max_size=size)).removed] == made[2:]


def test_no_limit_removes_nothing(given: Given) -> None:
    made, _ = three(given)
    assert given.store.gc(Limits()).removed == ()
    assert ids(given.store) == set(made)


def test_a_dry_run_says_what_it_would_remove(given: Given) -> None:
    made, size = three(given)
    would = given.store.gc(Limits(max_size=size), dry_run=True)
    assert ids(given.store) == set(made)
    assert would == given.store.gc(Limits(max_size=size))


def test_pins_keep(given: Given) -> None:
    made, size = three(given)
    given.store.pin(made[0])
    given.store.pin(made[0])
    assert [o.pinned for o in given.store.objects() if o.id == made[0]] == [True]
    collected = given.store.gc(Limits(max_size=0, older_than=0))
    assert [o.id for o in collected.removed] == made[1:]
    assert (collected.left, collected.untouchable) == (size, size)
    given.store.unpin(made[0])
    assert [o.id for o in given.store.gc(Limits(max_size=0)).removed] == made[:1]


def test_removing_takes_the_pin_along_and_rejecting_does_not(given: Given) -> None:
    store = given.store
    for drop, stays in ((store.remove, False), (store.reject, True)):
        object_id = put(store, tensors("a"))
        store.pin(object_id)
        drop(object_id)
        assert put(store, tensors("a")) == object_id
        assert [o.pinned for o in store.objects()] == [stays]


def test_grace(given: Given) -> None:
    store, clock = given.store, given.clock
    put(store, tensors("a"))
    clock.seconds += 599
    assert store.gc(Limits(max_size=0)).removed == ()
    assert store.gc(Limits(max_size=0)).untouchable > 0
    clock.seconds += 1
    put(store, tensors("b"))
    assert len(store.gc(Limits(max_size=0)).removed) == 1
    assert len(store.gc(Limits(max_size=0, grace=0)).removed) == 1


def test_leases_keep_what_a_build_uses_or_will_store(given: Given) -> None:
    store, clock = given.store, given.clock
    made, _ = three(given)
    with store.lease([key("a"), key("later"), key("never")]):
        later = put(store, tensors(["later"]))
        clock.seconds += HOUR
        with store.lease([key("b")]):
            assert [o.id for o in store.gc(Limits(max_size=0)).removed] == made[2:]
        assert [o.id for o in store.gc(Limits(max_size=0)).removed] == [made[1]]
        with store.lease([key("a")]):
            pass
        assert ids(store) == {made[0], later}
    assert {o.id for o in store.gc(Limits(max_size=0)).removed} == {made[0], later}


def test_a_lease_ends_with_an_error_too(given: Given) -> None:
    made, _ = three(given)
    with pytest.raises(RuntimeError), given.store.lease([key("a")]):
        raise RuntimeError
    assert len(given.store.gc(Limits(max_size=0)).removed) == len(made)


# -- at scale ------------------------------------------------------------------------------------------------------


def test_many_tensors_in_one_call(given: Given) -> None:
    names = [f"layer.{i}.weight" for i in range(5000)]
    put(given.store, tensors(names[:3000], 2), title="one")
    put(given.store, tensors(names[2000:], 2), title="two")
    keys = [key(n) for n in names]
    assert given.store.find(keys).keys() == set(keys)
    given.store.touch(keys)
    assert [o.hits for o in given.store.objects()] == [1, 1]
    with given.store.lease(keys):
        given.clock.seconds += HOUR
        assert given.store.gc(Limits(max_size=0)).removed == ()
    assert given.store.verify().tensors == 6000


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
def test_objects_on_disk_are_read_by_the_library(tmp_path: Path, dtype: DType) -> None:
    store = LocalStore(tmp_path, pytest.fail)
    put(store, tensors("ba", 7, dtype), title="lewd")
    (path,) = tmp_path.glob("objects/??/*.safetensors")
    with safe_open(str(path), framework="np") as file:
        said = file.metadata()
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: v.tobytes() for name, v in values.items()} == {n: content(key(n), 7 * dtype.size) for n in "ab"}
    assert said["mergeflow.object"] == "1"
    assert said["mergeflow.kind"] == "step"
    assert said["mergeflow.title"] == "lewd"
    assert said["mergeflow.numerics"] == "1"
    assert said["mergeflow.keys"].split(" ") == [key("a"), key("b")]
    digests = [payload(content(key(n), 7 * dtype.size)).hex() for n in "ab"]
    assert said["mergeflow.payloads"] == f"b3:{digests[0]} b3:{digests[1]}"
    store.close()

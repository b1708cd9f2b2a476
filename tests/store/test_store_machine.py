"""Any order of putting, finding, collecting, damaging, deleting and losing the index, against a model of what each
means: never a wrong byte, nothing kept is lost, and no more than the budget stays."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.stored import key, put, right, tensors

from mergeflow.store.local import LocalStore
from mergeflow.store.objects import Limits

GROUPS = ["ab", "bc", "cd", "e", "f", "abcdef"]
KEYS = [key(name) for name in "abcdef"]
SECOND = 10**9
groups = st.sampled_from(GROUPS)


class StoreMachine(RuleBasedStateMachine):
    """The model: `whole` are the ids of objects that must be there and right, with the names they hold and the time of
    writing; `hurt` are those that may be there and must never be believed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "cache"
        self.now = 1_700_000_000
        self.said: list[str] = []
        self.whole: dict[str, tuple[str, int]] = {}
        self.hurt: set[str] = set()
        self.used: dict[str, int] = {}
        self.pinned: set[str] = set()
        self.leases: list[tuple[str, AbstractContextManager[None]]] = []
        self.open()

    def open(self) -> None:
        self.store = LocalStore(self.folder, self.said.append, lambda: self.now * SECOND)

    def path(self, object_id: str) -> Path:
        return self.folder / "objects" / object_id[:2] / f"{object_id}.safetensors"

    def leased(self, group: str) -> bool:
        return any(set(group) & set(wanted) for wanted, _ in self.leases)

    # -- rules -----------------------------------------------------------------------------------------------------

    @rule(group=groups, later=st.integers(1, 2000))
    def put(self, group: str, later: int) -> None:
        self.now += later
        object_id = put(self.store, tensors(group, 50 * len(group)), title=group)
        os.utime(self.path(object_id), (self.now, self.now))  # what an index that is made again will take it for
        self.whole[object_id] = (group, self.now)
        self.used[object_id] = self.now
        self.hurt.discard(object_id)

    @rule(names=st.sets(st.sampled_from("abcdef")))
    def find(self, names: set[str]) -> None:
        found = right(self.store, [key(n) for n in sorted(names)])
        if not self.hurt:
            must = {key(n) for group, _ in self.whole.values() for n in group if n in names}
            assert found.keys() == must
        self.hurt = {i for i in self.hurt if self.path(i).exists()}

    @rule(group=groups, later=st.integers(1, 2000))
    def touch(self, group: str, later: int) -> None:
        self.now += later
        self.store.touch([key(n) for n in group])
        for object_id, (held, _) in self.whole.items():
            if set(held) & set(group):
                self.used[object_id] = self.now

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), on=st.booleans())
    def pin(self, data: st.DataObject, on: bool) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.whole)))
        if on:
            self.store.pin(object_id)
            self.pinned.add(object_id)
        else:
            self.store.unpin(object_id)
            self.pinned.discard(object_id)

    @precondition(lambda self: len(self.leases) < 2)
    @rule(group=groups)
    def lease(self, group: str) -> None:
        lease = self.store.lease([key(n) for n in group])
        lease.__enter__()
        self.leases.append((group, lease))

    @precondition(lambda self: self.leases)
    @rule()
    def end_lease(self) -> None:
        _, lease = self.leases.pop()
        lease.__exit__(None, None, None)

    @rule(
        budget=st.integers(0, 60_000),
        grace=st.sampled_from([0, 600]),
        older=st.sampled_from([None, 1000]),
        dry=st.booleans(),
    )
    def gc(self, budget: int, grace: int, older: int | None, dry: bool) -> None:
        kept = {
            i for i, (group, written) in self.whole.items()
            if i in self.pinned or self.leased(group) or self.now - written < grace
        }  # fmt: skip
        before = {o.id: o for o in self.store.objects()}
        collected = self.store.gc(Limits(budget, older, grace), dry_run=dry)
        removed = [o.id for o in collected.removed]
        assert kept.isdisjoint(removed)
        if dry:
            return
        for object_id in removed:
            assert not self.path(object_id).exists()
            self.whole.pop(object_id, None)
            self.hurt.discard(object_id)
        left = {o.id: o for o in self.store.objects()}
        assert sum(o.size for o in left.values()) == collected.left <= max(budget, collected.untouchable)
        if older is not None:
            assert all(
                self.now - o.used_ns // SECOND <= older for i, o in left.items() if i in self.whole and i not in kept
            )
        if older is None and removed and not self.hurt:  # what is left was used later than what had to go
            assert all(
                (before[i].used_ns, i) > (before[removed[-1]].used_ns, removed[-1]) for i in left if i not in kept
            )

    @rule()
    def verify(self) -> None:
        damaged = {d.id for d in self.store.verify().damaged}
        assert damaged <= self.hurt
        self.hurt = set()

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def flip(self, data: st.DataObject, where: float, bit: int) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.whole)))
        content = bytearray(self.path(object_id).read_bytes())
        content[int(where * len(content))] ^= 1 << bit
        self.rewrite(object_id, bytes(content))

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), where=st.floats(0, 1, exclude_max=True))
    def cut(self, data: st.DataObject, where: float) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.whole)))
        content = self.path(object_id).read_bytes()
        self.rewrite(object_id, content[: int(where * len(content))])

    def rewrite(self, object_id: str, content: bytes) -> None:
        self.path(object_id).write_bytes(content)
        del self.whole[object_id]
        self.hurt.add(object_id)

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), how=st.sampled_from(["store", "hand", "reject"]))
    def remove(self, data: st.DataObject, how: str) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.whole)))
        if how == "store":
            assert self.store.remove(object_id)
            self.pinned.discard(object_id)
        elif how == "reject":
            self.store.reject(object_id)
        else:
            self.path(object_id).unlink()
        del self.whole[object_id]

    @rule()
    def another_process(self) -> None:
        """Its connection is its own; leases of this one live on, as the process does."""
        self.store.close()
        self.open()

    @rule(where=st.lists(st.floats(0, 1, exclude_max=True), max_size=20), delete=st.booleans())
    def lose_the_index(self, where: list[float], delete: bool) -> None:
        self.store.close()
        index = self.folder / "objects.sqlite"
        if not index.exists():
            return
        if delete:
            index.unlink()
        else:
            content = bytearray(index.read_bytes())
            for each in where:
                content[int(each * len(content))] ^= 0xFF
            index.write_bytes(content)
        assert self.found_all() or not delete
        self.store.verify()  # takes in what a page that lost its rows has forgotten
        self.hurt = set()
        self.open()

    def found_all(self) -> bool:
        found = right(self.store, KEYS)
        return self.hurt != set() or found.keys() == {key(n) for group, _ in self.whole.values() for n in group}

    @invariant()
    def what_is_found_is_right(self) -> None:
        right(self.store, KEYS)  # asserts it
        self.hurt = {i for i in self.hurt if self.path(i).exists()}

    def teardown(self) -> None:
        while self.leases:
            self.end_lease()
        assert self.store.verify().damaged == () or self.hurt
        assert {o.id for o in self.store.objects()} == set(self.whole)
        self.store.close()
        shutil.rmtree(self.folder.parent)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=25)


@pytest.mark.slow
def test_the_machine_for_longer() -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=100, stateful_step_count=40))

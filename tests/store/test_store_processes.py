"""Several processes on one store, with gc always too eager, and with the locks of the index taken away: nobody ever
reads a wrong byte, and what is left in the end is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.stored import TESTS, key, right

from mergeflow.store.local import LocalStore
from mergeflow.store.objects import Limits

CODE = """
import random, sys, time
from pathlib import Path
from mergeflow.store.local import LocalStore
from mergeflow.store.objects import Limits
from support.stored import key, put, right, tensors, unlock_sqlite

folder, number, locks, seconds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
if locks == "none":  # SQLite's locks are all the locks there are
    unlock_sqlite()
random = random.Random(number)
store = LocalStore(folder, lambda message: print(message, file=sys.stderr))
groups = [[f"{group}{i}" for i in range(5)] for group in "abcdefgh"]
rounds = put_again = 0
until = time.monotonic() + seconds
while time.monotonic() < until or rounds < 5:
    rounds += 1
    wanted = random.sample(groups, 3)
    keys = [key(name) for group in wanted for name in group]
    with store.lease(keys):
        there = right(store, keys)
        for group in wanted:
            if not all(key(name) in there for name in group):
                put(store, tensors(group, 2000), title=group[0])
                put_again += 1
        again = right(store, keys)
        if locks == "sqlite":
            assert len(again) == len(keys), (len(again), "a leased object was removed")
        store.touch(keys)
        store.count(hits=len(there), misses=len(keys) - len(there), bytes_saved=0)
    if rounds % 3 == 0:
        store.gc(Limits(max_size=random.choice([0, 60_000, 200_000]), grace=0))
store.close()
print(rounds, put_again)
"""


@pytest.mark.parametrize("locks", ["sqlite", "none"])
def test_eight_processes_on_one_store(tmp_path: Path, locks: str) -> None:
    if locks == "none" and os.name == "nt":
        pytest.skip("there is no SQLite without locks on Windows")
    environment = {**os.environ, "PYTHONPATH": TESTS}
    folder = tmp_path / "cache"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(folder), str(i), locks, "2"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(8)
    ]  # fmt: skip
    said = []
    for child in children:
        out, warnings = child.communicate(timeout=300)
        assert child.returncode == 0, warnings
        said.append((out, warnings))
    if locks == "sqlite":
        assert [warnings for _, warnings in said] == [""] * 8
    store = LocalStore(folder, lambda message: None)
    verified = store.verify()
    assert verified.damaged == ()
    right(store, [key(f"{group}{i}") for group in "abcdefgh" for i in range(5)])
    collected = store.gc(Limits(max_size=0, grace=0))
    assert collected.left == 0
    assert [p for p in folder.glob("objects/**/*") if p.is_file()] == []
    assert list(folder.glob("leases/*")) == []
    store.close()

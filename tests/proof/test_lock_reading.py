"""Locks are handed on like recipes: what a hostile or a broken one does is to be refused, in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeflow.errors import IntegrityError
from mergeflow.provenance import lock

SOURCE = "{ digest: x, size: 1, tensors: 1 }"
BOMB = "a: &a { x: 1 }\n" + "".join(
    f"{after}: &{after} {{ <<: [{', '.join([f'*{name}'] * 9)}] }}\n"
    for name, after in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "a source twice": (f"lock: 1\nsources:\n  a: {SOURCE}\n  a: {SOURCE}\n", "line 4 has a key that was there before"),
    "a field twice": ("lock: 1\nlock: 1\n", "line 2 has a key that was there before"),
    "references that grow": (BOMB, "line 2 has a reference"),
    "a reference to itself": ("&a { lock: 1, sources: *a }\n", "line 1 has a reference"),
    "a date that is none": ("lock: 2001-99-99\n", "not text that could be one"),
    "a number of too many digits": (f"numerics: {'9' * 5000}\n", "not text that could be one"),
    "no YAML": ("lock: [\n", "is not YAML"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_lock_that_is_none(tmp_path: Path, name: str) -> None:
    text, message = BROKEN[name]
    (tmp_path / "recipe.lock").write_text(text)
    with pytest.raises(IntegrityError, match=message):
        lock.read(tmp_path / "recipe.lock")


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    source = lock.LockedSource(
        digest="b3:猫", size=2**40, tensors=3, url="https://host/x?y=#z", file="a: b.safetensors"
    )
    written = lock.Lock(sources={"a": source, "b": source}, outputs={"x y": lock.LockedOutput(key="k", digest="d")})
    lock.write(written, tmp_path / "recipe.lock")
    assert lock.read(tmp_path / "recipe.lock") == written

"""Outputs of several files: all of them, or what was there before; and never a mixture that anybody would load."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outputs import SHARDED, build, built, loaded, parts, same, sha256, wanted
from support.builds import TESTS, project
from support.checkpoints import Model, numbers, weights, write

from mergeflow.errors import MergeflowError, ResourceError
from mergeflow.formats import files

OLD = "a*0.5 + b*0.5"
NEW = "a*0.25 + b*0.75"
KINDS = {
    SHARDED: "  mix.safetensors: {{ from: {}, shard_size: 1MB, dtype: float32 }}\n",
    "mix.ckpt": "  mix.ckpt: {}\n",
}


def text(name: str, expression: str) -> str:
    return wanted(KINDS[name].format(expression), sources={"a": "a.safetensors", "b": "b.safetensors"})


def listing(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in sorted(folder.glob("mix*")) if "recipe" not in p.name}


@pytest.fixture(params=list(KINDS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Two models of 2.4 MB and an old output of them; the folder and the output's name."""
    import numpy as np

    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        model: Model = {f"t{i}": weights(rng, "F32", (200_000,)) for i in range(3)}
        write(tmp_path / f"{name}.safetensors", model | {"n": numbers("I64", [seed])})
    time.sleep(0.03)
    build(tmp_path, text(request.param, OLD))
    return tmp_path, request.param


def is_right(folder: Path, name: str) -> None:
    a, b = (loaded(folder / f"{n}.safetensors") for n in "ab")
    expected = {n: (t.double() * 0.25 + b[n].double() * 0.75).float() for n, t in a.items() if n != "n"}
    same(loaded(folder / name), {**expected, "n": a["n"]})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "io"])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "posix_fallocate", "open", "replace"])
def test_each_call_fails_in_turn(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    folder, name = place
    old = listing(folder)
    real = Path.replace if call == "replace" else getattr(os, call)
    failures = nth = 0
    while True:
        nth += 1
        calls = 0

        def failing(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth:  # noqa: B023
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        with project(folder, text(name, NEW), jobs=1) as p:
            p.plan()
            with monkeypatch.context() as patch:
                patch.setattr(*((Path, "replace", failing) if call == "replace" else (os, call, failing)))
                message = ""
                try:
                    p.build()
                except ResourceError as error:
                    message = str(error)
        if message:
            failures += 1
            assert ("the disk is full" in message) == (code == errno.ENOSPC)
            assert listing(folder) == old
            assert not parts(folder)
            continue
        is_right(folder, name)
        if calls < nth:
            break
        build(folder, text(name, OLD))
        assert listing(folder) == old
    assert failures >= 1
    assert not parts(folder)
    is_right(folder, name)


CODE = """
import os, sys
from pathlib import Path
from support.builds import build
folder, nth = Path(sys.argv[1]), int(sys.argv[2])
real, calls = Path.replace, 0
def replace(self, target):
    global calls
    calls += 1
    if calls == nth:
        os.kill(os.getpid(), 9)
    return real(self, target)
Path.replace = replace
build(folder, (folder / "recipe.yaml").read_text())
"""


@pytest.mark.slow
def test_killed_at_each_rename(place: tuple[Path, str]) -> None:
    """At no moment is there an index over shards of two builds; the next build needs no --force and clears up."""
    folder, name = place
    old = listing(folder)
    for nth in range(1, 30):
        (folder / "recipe.yaml").write_text(text(name, NEW))
        env = {**os.environ, "PYTHONPATH": TESTS}
        done = subprocess.run([sys.executable, "-P", "-c", CODE, str(folder), str(nth)], env=env, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if (folder / name).exists():
            whole = listing(folder)
            if whole.get(name) == old[name]:
                assert name == "mix.ckpt" or whole == old
            else:
                is_right(folder, name)
        build(folder, text(name, NEW))
        is_right(folder, name)
        assert not [part for part in parts(folder) if "recipe" not in part.name]
        build(folder, text(name, OLD))
        assert listing(folder) == old
    else:
        pytest.fail("it never ended")
    assert nth > 3


def test_a_file_that_is_not_ours_is_not_overwritten(place: tuple[Path, str]) -> None:
    folder, name = place
    for path in folder.glob("mix*"):
        if "recipe" in path.name or path.name.endswith(".mergeflow.json"):
            continue
        kept = path.read_bytes()
        half = len(kept) // 2
        path.write_bytes(kept[:half] + bytes([kept[half] ^ 1]) + kept[half + 1 :])
        before = listing(folder)
        with pytest.raises(MergeflowError, match="not what mergeflow built there"):
            build(folder, text(name, NEW))
        assert listing(folder) == before
        path.write_bytes(kept)
        assert not any(built(build(folder, text(name, OLD))))
    (folder / name).unlink()
    assert build(folder, text(name, OLD)).outputs[0].reason == "it is gone"


def test_a_missing_part_is_made_again(place: tuple[Path, str]) -> None:
    folder, name = place
    old = listing(folder)
    for part in old:
        (folder / part).unlink()
        assert all(built(build(folder, text(name, OLD))))
        assert listing(folder) == old


def test_there_is_no_room_for_all_of_the_files(place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, name = place
    old = listing(folder)
    monkeypatch.setattr("mergeflow.formats.parts._free_space", lambda folder: 1_500_000)
    with pytest.raises(ResourceError, match=r"needs 2\.4 MB, the disk has 1\.5 MB free"):
        build(folder, text(name, NEW))
    assert listing(folder) == old
    assert not parts(folder)


def test_clean_removes_every_file(place: tuple[Path, str]) -> None:
    folder, name = place
    with project(folder, text(name, OLD)) as p:
        found = list(p.clean(dry_run=True))
        assert all(ours for _, ours in found)
        assert {path.name for path, _ in found} == {n for n in listing(folder) if not n.endswith(".mergeflow.json")}
        assert list(p.clean()) == found
    assert not list(folder.glob("mix*"))


def test_portable_files_do_the_same(place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, name = place
    build(folder, text(name, NEW))
    new = listing(folder)
    monkeypatch.setattr(files, "PORTABLE", True)
    build(folder, text(name, NEW), force=True)
    assert listing(folder) == new

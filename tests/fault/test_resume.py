"""A build that was killed: the next one takes over its finished tensors, after hashing; nothing of it is left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, TESTS, Heard, build, parts, plan, project, recipe, sha256
from support.checkpoints import Model, read, related, weights, write
from support.exact import F16, doubles, halves_of_sum

from mergeflow.build.settings import BuildResult
from mergeflow.digest import hash_bytes, printable
from mergeflow.errors import ResourceError

LARGE, SMALL, ELEMENTS = 10, 30, 530_001
EXPRESSION = "a + (b - c)*0.3"
RECIPE = recipe(EXPRESSION)

CODE = """
import sys, threading
from pathlib import Path
import mergeflow
from mergeflow.events import PhaseStarted, Progressed
from support.builds import settings
folder, jobs, stop, outputs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
lock, count, passes = threading.Lock(), 0, 0
def report(event):
    global count, passes
    with lock:
        if isinstance(event, PhaseStarted) and event.verb == "merging":
            passes += 1
        count += isinstance(event, Progressed) and passes == outputs
        if count == stop:
            print("there", flush=True)
        there = count >= stop
    if there:
        threading.Event().wait()
with mergeflow.load(folder / "recipe.yaml", settings=settings(folder, jobs=jobs), report=report) as p:
    p.build()
print("built", flush=True)
"""


def stopped(folder: Path, text: str = RECIPE, *, units: int = 5, jobs: int = 1, on: int = 1) -> subprocess.Popen[str]:
    """A build that has done so many units of its pass number `on`, and waits with a part of its output written."""
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, str(folder), str(jobs), str(units), str(on)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": TESTS},
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline() != "there\n":
        process.kill()
        pytest.fail(process.communicate()[1])
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def killed(folder: Path, text: str = RECIPE, *, units: int = 5, jobs: int = 1, on: int = 1) -> None:
    kill(stopped(folder, text, units=units, jobs=jobs, on=on))


def models() -> dict[str, Model]:
    rng = np.random.default_rng(12)
    base = {f"large.{i}": weights(rng, "F16", (ELEMENTS,)) for i in range(LARGE)}  # two chunks, and a unit, each
    base |= {f"small.{i}": weights(rng, "F16", (30 + i,)) for i in range(SMALL)}
    return {name: {n: related(rng, t) for n, t in base.items()} for name in "abc"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name, model in models().items():
        write(folder / f"{name}.safetensors", model)
    time.sleep(0.03)
    return folder


@pytest.fixture(scope="module")
def right(sources: Path) -> Model:
    """What EXPRESSION is, in exact arithmetic."""
    a, b, c = (read(sources / f"{name}.safetensors") for name in "abc")
    found: Model = {}
    for name in a:
        x, y, z = (doubles(F16, model[name].data) for model in (a, b, c))
        data = halves_of_sum([(10, x), (3, y), (-3, z)], 10).astype(np.float16).tobytes()
        found[name] = a[name]._replace(data=data)
    return found


@pytest.fixture
def folder(sources: Path, tmp_path: Path) -> Path:
    for path in sources.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def check(path: Path, right: Model) -> None:
    assert read(path) == right


def tally(result: BuildResult, output: int = 0) -> tuple[int, int]:
    return result.outputs[output].tally.computed, result.outputs[output].tally.reused


def left(folder: Path) -> list[Path]:
    """Temporary files and their journals."""
    return [*parts(folder), *folder.rglob("*.journal")]


def same_without_interruption(folder: Path, text: str, *names: str) -> None:
    """That the files are what a build from nothing gives."""
    fresh = folder / "fresh"
    fresh.mkdir()
    for name in "abc":
        (fresh / f"{name}.safetensors").symlink_to(folder / f"{name}.safetensors")
    build(fresh, text)
    for name in names:
        assert sha256(fresh / name) == sha256(folder / name)


# -- killed and built again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_was_done_is_not_done_again(folder: Path, right: Model, jobs: int) -> None:
    killed(folder, units=4, jobs=jobs)
    assert len(left(folder)) == 2
    heard = Heard()
    result = build(folder, RECIPE, heard)
    computed, reused = tally(result)
    assert 4 <= reused < LARGE
    assert computed + reused == LARGE + SMALL
    assert result.outputs[0].bytes_read == 3 * (
        2 * ELEMENTS * (LARGE - reused) + sum(2 * (30 + i) for i in range(SMALL))
    )
    assert not heard.warnings
    assert not left(folder)
    check(folder / "mix.safetensors", right)
    same_without_interruption(folder, RECIPE, "mix.safetensors")
    assert not build(folder, RECIPE).outputs[0].built


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("mix.ckpt: ", ["mix.ckpt", "mix.ckpt.mergeflow.json"]),
        (
            "mix.safetensors: { shard_size: 4MB, from: ",
            ["mix.safetensors.index.json", *(f"mix-{i:05}-of-00004.safetensors" for i in range(1, 5))],
        ),
    ],
    ids=["ckpt", "shards"],
)
def test_other_containers(folder: Path, output: str, names: list[str]) -> None:
    end = " }" if "{" in output else ""
    text = recipe("").split("outputs:")[0] + f"outputs:\n  {output}{EXPRESSION}{end}\n"
    killed(folder, text, units=5)
    assert len([path for path in left(folder) if path.suffix == ".journal"]) == len(names) - 1
    assert tally(build(folder, text)) == (LARGE + SMALL - 5, 5)
    assert not left(folder)
    same_without_interruption(folder, text, *names)


@pytest.mark.slow
def test_outputs_of_one_pass_and_of_several(folder: Path) -> None:
    """In the second pass when it is killed: the first output is done, and what there is of the others stays through
    the first pass of the next build."""
    text = HEAD + (
        "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
        "params: { s: { sweep: [0.25, 0.5] } }\n"
        'outputs:\n  z.safetensors: a*0.5 + b*0.5\n  "x-{s}.safetensors": scale(c, s)\n'
    )
    assert [len(members) for members in plan(folder, text).passes()] == [1, 2]
    killed(folder, text, units=4, on=2)
    assert len(left(folder)) == 4
    (folder / "z.safetensors").unlink()
    result = build(folder, text)
    assert [tally(result, i) for i in range(3)] == [(40, 0), (36, 4), (36, 4)]
    assert not left(folder)
    same_without_interruption(folder, text, "z.safetensors", "x-0.25.safetensors", "x-0.5.safetensors")


def test_results_of_methods(folder: Path) -> None:
    text = recipe("slerp(a, b, 0.4)", "ab")
    killed(folder, text, units=6)
    computed, reused = tally(build(folder, text))
    assert reused >= 2
    assert computed + reused == LARGE + SMALL
    assert not left(folder)
    same_without_interruption(folder, text, "mix.safetensors")


@pytest.mark.slow
def test_killed_again_and_again(folder: Path, right: Model) -> None:
    """Each build goes on where the last one was, also with what that one had taken from the one before."""
    reused = []
    for units in (3, 2, 5, 7, 9):
        killed(folder, units=units)
        with project(folder, RECIPE) as p:
            planned = p.plan()
        reused.append(len(planned.outputs[0].kept))
        assert len(parts(folder)) <= 2
    assert reused == sorted(reused)
    assert reused[-1] == 9
    assert tally(build(folder, RECIPE))[1] == reused[-1]
    check(folder / "mix.safetensors", right)
    assert not left(folder)


@pytest.mark.slow
def test_killed_at_random_moments(folder: Path, right: Model) -> None:
    rng = np.random.default_rng(5)
    for _ in range(12):
        process = stopped(folder, units=1, jobs=2)
        kill(process)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", CODE, str(folder), "2", "1000000", "1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": TESTS},
        )  # fmt: skip
        time.sleep(0.2 + float(rng.random()) * 0.6)
        process.kill()
        process.wait()
        result = build(folder, RECIPE)
        check(folder / "mix.safetensors", right)
        assert not left(folder) or not result.outputs[0].built
        (folder / "mix.safetensors").unlink()
        shutil.rmtree(folder / "cache")


# -- what is not taken ---------------------------------------------------------------------------------------------


def test_only_what_stays_the_same_after_an_edit(folder: Path) -> None:
    text = recipe("a + (b - c)*k", more='params: { k: { default: 0.3, "large.1": 0.5 } }\n')
    killed(folder, text, units=5)
    edited = text.replace("0.5 }", '0.6, "small.*": 0.7, "large.7": 0.8 }')
    assert tally(build(folder, edited)) == (LARGE + SMALL - 4, 4)
    same_without_interruption(folder, edited, "mix.safetensors")


def test_another_output_of_the_same(folder: Path) -> None:
    killed(folder, units=5)
    text = recipe(EXPRESSION, out="other")
    assert tally(build(folder, text))[1] == 5
    assert not left(folder)
    same_without_interruption(folder, text, "other.safetensors")


def test_forced_builds_take_nothing(folder: Path) -> None:
    killed(folder)
    assert tally(build(folder, RECIPE, force=True)) == (LARGE + SMALL, 0)
    assert not left(folder)


def test_a_living_writer_is_left_alone(folder: Path, right: Model) -> None:
    process = stopped(folder)
    before = {path: path.read_bytes() for path in left(folder)}
    try:
        assert len(before) == 2
        assert tally(build(folder, RECIPE)) == (LARGE + SMALL, 0)
        assert {path: path.read_bytes() for path in left(folder)} == before
    finally:
        kill(process)
    check(folder / "mix.safetensors", right)
    assert tally(build(folder, recipe(EXPRESSION, out="other")))[0] == 0  # which the finished output has, all of it
    assert not left(folder)


def test_a_source_that_was_touched_since(folder: Path, sources: Path) -> None:
    """It may have been written to while it was read, and put back: the keys would say nothing of it."""
    killed(folder)
    os.utime(sources / "b.safetensors")
    time.sleep(0.03)
    assert tally(build(folder, RECIPE)) == (LARGE + SMALL, 0)
    assert not left(folder)


# -- journals that are not as they should be -----------------------------------------------------------------------


class Left:
    """What a killed build has left, to be put there again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.part,) = parts(folder)
        self.journal = self.part.with_name(self.part.name + ".journal")
        self.bytes, self.said = self.part.read_bytes(), self.journal.read_bytes()

    def put(self, said: bytes, data: bytes | None = None) -> None:
        (self.folder / "mix.safetensors").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        self.part.write_bytes(self.bytes if data is None else data)
        self.journal.write_bytes(said)

    def heading(self, change: Callable[[dict[str, list[object]]], object]) -> bytes:
        """The journal with another heading, signed."""
        first, _, *rest = self.said.split(b"\n")
        document = json.loads(first)
        changed = change(document)
        line = json.dumps(document if changed is None else changed).encode()
        return b"\n".join([line, printable(hash_bytes(line)).encode(), *rest])


@pytest.fixture(scope="module")
def found(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("found")
    for path in sources.iterdir():
        shutil.copyfile(path, folder / path.name)
    time.sleep(0.03)
    killed(folder, units=6)
    return Left(folder)


def after(found: Left, right: Model) -> tuple[int, list[str]]:
    """How many tensors the next build reuses, and its warnings."""
    heard = Heard()
    result = build(found.folder, RECIPE, heard)
    check(found.folder / "mix.safetensors", right)
    assert not left(found.folder)
    return tally(result)[1], heard.warnings


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.93, 0.999])
def test_a_torn_journal(found: Left, right: Model, share: float) -> None:
    said = found.said[: int(share * len(found.said))]
    found.put(said)
    reused, warnings = after(found, right)
    assert reused <= 5
    assert reused == max(0, said.count(b"\n") - 2)  # a line for each, behind the heading and its digest
    assert not warnings


@pytest.mark.parametrize(
    ("rubbish", "reused"),
    [
        (b"\0" * 5000, 6),
        (b"\n\n \n5\n7 zz\nseven 00\n-1 " + b"00" * 32 + b"\n" + b"9" * 5000 + b" 00\n", 6),
        (bytes(range(256)) * 20 + b"\n", 6),
        (b"1 " + b"00" * 40 + b"\n", 6),
    ],
    ids=["zeros", "lines", "bytes", "a wrong digest"],
)
def test_rubbish_behind_what_was_written(found: Left, right: Model, rubbish: bytes, reused: int) -> None:
    found.put(found.said + rubbish)
    count, warnings = after(found, right)
    assert count == reused
    assert len(warnings) == (rubbish[:2] == b"1 ")


def test_rubbish_instead_of_a_journal(found: Left, right: Model) -> None:
    for said in (b"", b"\n\n\n", b"{}\n{}\n{}\n", os.urandom(1000), found.said[1:]):
        found.put(said)
        assert after(found, right) == (0, [])


def set_to(column: str, at: int, value: object) -> Callable[[dict[str, list[object]]], None]:
    return lambda heading: heading[column].__setitem__(at, value)


LIES: dict[str, tuple[Callable[[dict[str, list[object]]], object], int, int]] = {
    "nothing": (lambda heading: None, 6, 0),
    "a key": (set_to("keys", 1, "k3:" + "0" * 64), 5, 0),
    "an offset": (set_to("offsets", 1, 4096), 6, 1),
    "an offset beyond the file": (set_to("offsets", 2, 1 << 40), 5, 0),
    "an offset before the file": (set_to("offsets", 2, -5), 5, 0),
    "a length beyond the file": (set_to("sizes", 0, 1 << 62), 0, 0),
    "a negative length": (set_to("sizes", 3, -1 << 62), 3, 0),
    "other bytes were expected": (set_to("payloads", 3, "00" * 32), 5, 0),
    "a word for a number": (set_to("sizes", 3, "many"), 0, 0),
    "a tensor less": (lambda heading: heading["sizes"].pop(), 0, 0),
    "another schema": (lambda heading: {**heading, "schema": "mergeflow/journal/2"}, 0, 0),
    "no sources": (lambda heading: {**heading, "sources": [["nowhere", 1, 2, 3, 4]]}, 0, 0),
    "no columns": (lambda heading: {"schema": heading["schema"], "sources": []}, 0, 0),
    "a list": (lambda heading: [heading], 0, 0),
    "a number": (lambda heading: 5, 0, 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_journal_that_lies(found: Left, right: Model, lie: str) -> None:
    change, reused, warned = LIES[lie]
    found.put(found.heading(change))
    count, warnings = after(found, right)
    assert count == reused
    assert warnings == ["1 tensor of an earlier build is damaged: computed again"] * warned


def test_a_heading_that_was_changed(found: Left, right: Model) -> None:
    """Two keys that changed places would put bytes in the wrong tensor, and no hash would find it."""
    first, rest = found.said.split(b"\n", 1)
    keys = json.loads(first)["keys"]
    one, two = keys[0].encode(), keys[1].encode()
    found.put(first.replace(one, b"?").replace(two, one).replace(b"?", two) + b"\n" + rest)
    assert after(found, right) == (0, [])


def test_a_part_that_rotted_and_one_that_was_cut(found: Left, right: Model) -> None:
    start = json.loads(found.said.split(b"\n")[0])["offsets"][2]
    data = bytearray(found.bytes)
    data[start + 1_000_000] ^= 1
    found.put(found.said, bytes(data))
    assert after(found, right) == (6, ["1 tensor of an earlier build is damaged: computed again"])
    found.put(found.said, found.bytes[: start + 10])
    assert after(found, right) == (2, [])


def test_damage_that_was_copied_by_a_build_that_was_killed_too(found: Left, right: Model) -> None:
    """It is noted as what it is, and not as what it should be: a third build must not take it for sound."""
    start = json.loads(found.said.split(b"\n")[0])["offsets"][0]
    data = bytearray(found.bytes)
    data[start] ^= 1
    found.put(found.said, bytes(data))
    killed(found.folder, units=4)
    found.journal.unlink()
    found.part.unlink()
    reused, _ = after(found, right)
    assert reused == 3


def test_a_part_without_its_journal_and_the_other_way_round(found: Left, right: Model) -> None:
    found.put(found.said)
    found.journal.unlink()
    assert after(found, right) == (0, [])
    found.put(found.said)
    found.part.unlink()
    assert after(found, right) == (0, [])


# -- what a build that is not killed has of it ---------------------------------------------------------------------


@pytest.mark.parametrize("nth", [0, 1, 3])
@pytest.mark.parametrize("short", [False, True])
def test_a_journal_that_cannot_be_written(
    folder: Path, right: Model, monkeypatch: pytest.MonkeyPatch, nth: int, *, short: bool
) -> None:
    real, calls = os.write, 0

    def full(fd: int, data: bytes) -> int:
        nonlocal calls
        if not str(Path(f"/proc/self/fd/{fd}").readlink()).endswith(".journal"):
            return real(fd, data)
        calls += 1
        if calls <= nth:
            return real(fd, data)
        if short:
            return real(fd, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    heard = Heard()
    build(folder, RECIPE, heard, jobs=1)
    monkeypatch.undo()
    assert calls == nth + 1  # it is given up, and not tried again
    assert not heard.warnings
    check(folder / "mix.safetensors", right)
    assert not left(folder)


def test_a_journal_that_cannot_be_made(folder: Path, right: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Path, *more: int) -> int:
        if str(path).endswith(".journal"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *more)

    monkeypatch.setattr(os, "open", refusing)
    build(folder, RECIPE)
    check(folder / "mix.safetensors", right)
    assert not left(folder)


def test_what_was_left_makes_room(folder: Path, right: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room beside it, it goes, and the output is made from nothing."""
    killed(folder)
    size = parts(folder)[0].stat().st_size
    monkeypatch.setattr("mergeflow.formats.parts._free_space", lambda folder: 0 if parts(folder) else size)
    result = build(folder, RECIPE)
    assert result.outputs[0].bytes_read == 3 * sum(len(t.data) for t in right.values())
    check(folder / "mix.safetensors", right)
    assert not left(folder)


def test_no_room_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(folder)
    monkeypatch.setattr("mergeflow.formats.parts._free_space", lambda folder: 0)
    with pytest.raises(ResourceError, match="the disk has"):
        build(folder, RECIPE)


def test_a_build_that_fails_leaves_it_for_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(folder, units=5)

    def failing(event: object) -> None:
        if getattr(event, "verb", "") == "merging":
            raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        build(folder, RECIPE, failing)
    assert len(left(folder)) == 2
    assert tally(build(folder, RECIPE))[1] == 5
    assert not left(folder)


def test_it_is_called_what_it_is(folder: Path) -> None:
    from mergeflow.cli.describe import kept_files
    from mergeflow.cli.text import kept_file
    from mergeflow.plan.account import account

    killed(folder, units=5)
    planned = plan(folder, RECIPE)
    (file,) = kept_files(account(planned, planned.outputs[0]))
    assert kept_file(file) == "an interrupted build of mix.safetensors"
    assert file["tensors"] == 5
    assert file["bytes"] == 5 * 2 * ELEMENTS

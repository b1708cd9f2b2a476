"""Any order of editing, building, collecting, damaging, deleting and failing: after every build each output has the
bytes that a build without anything to reuse gives."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from support.builds import HEAD, parts, settings, sha256
from support.checkpoints import Model, Tensor, numbers, related, weights, write

import mergeflow
from mergeflow.build.project import Project
from mergeflow.build.quick import Asked, unchanged
from mergeflow.build.storing import SIZE_VARIABLE, Shelf
from mergeflow.errors import MergeflowError
from mergeflow.formats import processes
from mergeflow.formats.files import fingerprint
from mergeflow.formats.parts import PartFile
from mergeflow.plan.cost import Rates
from mergeflow.store import leases
from mergeflow.store.objects import Limits

if not hasattr(os, "pwrite"):
    pytest.skip("faults are injected into POSIX's calls", allow_module_level=True)

EXPRESSIONS = [
    "a + (b - c) * k", "a + (t - a) * m", "kept", "kept + (t - a) * m", "slerp(a, t, m)", "stepped",
    "ties(kept, [b, t], density=d)", "a", "b + (kept - t) * k", "stepped*0.5 + a*0.5",
]  # fmt: skip
CHOICES = {
    "m": ["0.25", "0.7", "1"],
    "line": ["0.4", "0.9", "0"],
    "d": ["0.2", "0.5"],
    "dtype": ["", "float16", "bfloat16", "float32"],
    "keep": ["true", "false"],
    "sum": ["a*0.5 + b*0.2 + c*0.3", "a*0.5 + t*0.5"],
    "x": EXPRESSIONS,
    "y": EXPRESSIONS,
    "sweep": ["[0.5]", "[0.5, 0.25]"],
}
TEXT = (
    HEAD
    + """sources: {{ a: a.safetensors, b: b.safetensors, c: c.safetensors }}
params: {{ m: {m}, k: {{ default: 0.5, "in.*": {line} }}, d: {d}, w: {{ sweep: {sweep} }} }}
steps:
  t: ties(a, [b, c], density=d)
  kept: {{ expr: {sum}, keep: {keep} }}
  stepped: {{ expr: kept + (t - a)*m, round: float16, keep: {keep} }}
defaults: {{ embed: none{dtype} }}
outputs:
  x.safetensors: {x}
  y.safetensors: {y}
  "z-{{w}}.safetensors": a*(1 - w) + t*w
"""
)
INDEXES = ("cache/objects.sqlite", "cache/index.sqlite", "memo/memo-3.sqlite")
SOURCES, VARIANTS = "abc", 3
SHAPES = {"in.0": (41,), "in.1": (3, 11), "mid.0": (70,), "out.0": (17,), "out.1": (1,), "wide": (25,)}
Contents = tuple[tuple[tuple[str, int], ...], ...]  # of each source, which variant each tensor is
COUNTED = {"steps": 0, "builds": 0, "compared": 0}


@cache
def tensor(source: str, name: str, variant: int) -> Tensor:
    """Fine-tunes of one model; each variant of a tensor has other values."""
    number = list(SHAPES).index(name)
    base = weights(np.random.default_rng(number), "F32" if name == "wide" else "F16", SHAPES[name])
    return related(np.random.default_rng([number, SOURCES.index(source), variant]), base)


def model(source: str, variants: tuple[tuple[str, int], ...]) -> Model:
    return {"ids": numbers("I64", range(5)), **{name: tensor(source, name, variant) for name, variant in variants}}


def write_sources(folder: Path, contents: Contents) -> None:
    for source, variants in zip(SOURCES, contents, strict=True):
        write(folder / f"{source}.safetensors", model(source, variants))


def scratch() -> Path:
    """In memory where that is a file system: the state machine syncs a lot, and no disk is what it tries."""
    there = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="mergeflow-", dir=there if there.is_dir() else None))


@cache
def expected(text: str, contents: Contents) -> dict[str, str]:
    """The sha256 of each output, built in an empty folder with nothing to reuse."""
    folder = scratch()
    try:
        write_sources(folder, contents)
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        with mergeflow.load(folder / "recipe.yaml", settings=settings(folder, force=True)) as p:
            built = p.build()
            assert not p.shelf.store.statistics().hits
        return {output.path: sha256(output.target) for output in built.outputs}
    finally:
        shutil.rmtree(folder)


class Killed(BaseException):
    """The process ends here: nothing is tidied up."""


class Fault:
    """A function of the system that fails when it is called for the nth time."""

    def __init__(self, real: Callable[..., object], nth: int, error: Callable[[], BaseException]) -> None:
        self.real, self.left, self.error = real, nth, error
        self.lock = threading.Lock()

    def __call__(self, *args: object, **named: object) -> object:
        with self.lock:
            self.left -= 1
            due = self.left == 0
        if due:
            raise self.error()
        return self.real(*args, **named)


FAULTS: dict[str, Callable[[], BaseException]] = {
    "full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "io": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "interrupt": KeyboardInterrupt,
    "kill": Killed,
}


@contextmanager
def dying() -> Iterator[None]:
    """What is begun in here is left behind, as by a process that is dead."""
    mark = processes.process_mark().rpartition("-")[0] + "-1"
    with ExitStack() as stack:
        stack.enter_context(mock.patch("mergeflow.formats.parts.process_mark", return_value=mark))
        stack.enter_context(mock.patch.object(leases, "process_mark", return_value=mark))
        stack.enter_context(mock.patch.object(PartFile, "discard", PartFile._close))
        yield


class BuildMachine(RuleBasedStateMachine):
    """`edited` are outputs that somebody changed, `rotten` those that changed without a trace: a build may not notice
    those, but must not take a wrong byte from them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = scratch()
        self.chosen = {name: values[0] for name, values in CHOICES.items()}
        self.contents: Contents = tuple(tuple((name, 0) for name in SHAPES) for _ in SOURCES)
        self.edited: set[str] = set()
        self.rotten: set[str] = set()
        self.dead: list[Project] = []
        write_sources(self.folder, self.contents)

    @property
    def text(self) -> str:
        dtype = self.chosen["dtype"]
        return TEXT.format(**{**self.chosen, "dtype": f", dtype: {dtype}" if dtype else ""})

    @property
    def objects(self) -> list[Path]:
        return sorted((self.folder / "cache" / "objects").rglob("*.safetensors"))

    def outputs(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("*.safetensors") if p.stem not in SOURCES)

    def project(self, **more: object) -> Project:
        path = self.folder / "recipe.yaml"
        if not path.exists() or path.read_text(encoding="utf-8") != self.text:
            path.write_text(self.text, encoding="utf-8")
        return mergeflow.load(path, settings=settings(self.folder, **more))

    # -- edits and builds ------------------------------------------------------------------------------------------

    @rule(data=st.data(), field=st.sampled_from(sorted(CHOICES)), build=st.sampled_from([True, True, False]))
    def edit(self, data: st.DataObject, field: str, build: bool) -> None:
        self.chosen[field] = data.draw(st.sampled_from(CHOICES[field]))
        self.step()
        if build:
            self.build()

    @rule(
        source=st.integers(0, 2), name=st.sampled_from(sorted(SHAPES)), variant=st.integers(0, VARIANTS - 1),
        build=st.booleans(),
    )  # fmt: skip
    def change_a_tensor(self, source: int, name: str, variant: int, build: bool) -> None:
        changed = {**dict(self.contents[source]), name: variant}
        self.contents = (*self.contents[:source], tuple(changed.items()), *self.contents[source + 1 :])
        write(self.folder / f"{SOURCES[source]}.safetensors", model(SOURCES[source], self.contents[source]))
        self.step()
        if build:
            self.build()

    @rule(
        jobs=st.integers(1, 2), size=st.sampled_from(["", "2kB", "12kB"]), keeps=st.sampled_from([True, True, False]),
        force=st.sampled_from([False] * 5 + [True]), stamped=st.sampled_from([False] * 3 + [True]),
    )  # fmt: skip
    def build_somehow(self, jobs: int, size: str, keeps: bool, force: bool, stamped: bool) -> None:
        self.build(jobs=jobs, size=size, keeps=keeps, force=force, stamped=stamped)

    def build(self, *, size: str = "", keeps: bool = True, stamped: bool = False, **more: object) -> None:
        with self.machine(size, keeps=keeps):
            try:
                self.made(stamped=stamped, **more)
            except MergeflowError as error:
                if "is not overwritten" not in error.message or not self.edited | self.rotten:
                    raise
                for name in self.edited | self.rotten:
                    (self.folder / name).unlink(missing_ok=True)
                self.edited, self.rotten = set(), set()
                self.made(stamped=stamped, **more)
        self.step()

    @contextmanager
    def machine(self, size: str, *, keeps: bool) -> Iterator[None]:
        """A store of that size, on a disk that is fast enough to keep everything, or nothing."""
        rates = Rates(1e15, 1e15) if keeps else Rates(1.0, 1.0)
        environment = {SIZE_VARIABLE: size} if size else {}
        with mock.patch.object(Shelf, "_rates", return_value=rates), mock.patch.dict(os.environ, environment):
            yield

    def made(self, *, stamped: bool, **more: object) -> None:
        with self.project(**more) as p:
            if stamped:
                time.sleep(0.03)  # what was written a moment ago gets no stamp
            asked = Asked(self.folder / "recipe.yaml", (), {}, {}) if stamped else None
            done = unchanged(asked, p.settings) if asked is not None else None
            if done is None:
                done = p.build(asked=asked).outputs
        COUNTED["builds"] += 1
        wanted = expected(self.text, self.contents)
        assert [output.path for output in done] == list(wanted)
        for output in done:
            if output.built:
                self.rotten.discard(output.path)
                self.edited.discard(output.path)
            if output.path not in self.rotten:
                assert sha256(output.target) == wanted[output.path], (output.path, output.reason)
                COUNTED["compared"] += 1

    @rule(
        call=st.sampled_from(["pwrite", "fsync", "replace", "preadv", "open", "posix_fallocate"]),
        nth=st.integers(1, 30), kind=st.sampled_from(sorted(FAULTS)), force=st.booleans(),
    )  # fmt: skip
    def build_that_fails(self, call: str, nth: int, kind: str, force: bool) -> None:
        """Whatever happens in the middle: an output is what it was or what it was to be."""
        before = {path.name: sha256(path) for path in self.outputs()}
        with ExitStack() as stack:
            stack.enter_context(self.machine("", keeps=True))
            if kind == "kill":
                stack.enter_context(dying())
            p = self.project(jobs=1, force=force)
            stack.enter_context(mock.patch.object(os, call, Fault(getattr(os, call), nth, FAULTS[kind])))
            with suppress(MergeflowError, KeyboardInterrupt, Killed):
                p.build()
            if kind == "kill":
                self.dead.append(p)  # its leases stay
                for each in (p.memo, p.records, p.shelf.store):
                    each.close()
        if kind != "kill":
            p.close()
        wanted = expected(self.text, self.contents)
        for path in self.outputs():
            now = sha256(path)
            if now != before.get(path.name):
                assert now == wanted[path.name], path.name
                self.rotten.discard(path.name)
                self.edited.discard(path.name)
        self.step()

    # -- the store -------------------------------------------------------------------------------------------------

    @rule(most=st.integers(0, 8000), grace=st.sampled_from([0.0, 600.0]))
    def gc(self, most: int, grace: float) -> None:
        with self.project() as p:
            collected = p.shelf.store.gc(Limits(most, grace=grace))
        assert collected.left <= max(most, collected.untouchable)
        self.step()

    @rule(
        what=st.sampled_from(["object", *INDEXES, "cache", "memo"]), data=st.data(), build=st.booleans(),
        how=st.sampled_from(["flip", "cut", "other", "gone"]), at=st.integers(0, 999),
    )  # fmt: skip
    def harm_the_store(self, what: str, data: st.DataObject, how: str, at: int, build: bool) -> None:
        if what == "object" and self.objects:
            damage(data.draw(st.sampled_from(self.objects)), how, at)
        elif what in INDEXES and (self.folder / what).exists():
            damage(self.folder / what, how, at)
        elif what in ("cache", "memo"):
            shutil.rmtree(self.folder / what, ignore_errors=True)
        self.step()
        if build:
            self.build()

    # -- outputs and sources ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.outputs())
    @rule(
        data=st.data(), what=st.sampled_from(["delete", "edit", "rot", "touch", "touch a source"]),
        how=st.sampled_from(["flip", "cut", "other"]), at=st.integers(0, 999),
    )  # fmt: skip
    def harm_an_output(self, data: st.DataObject, what: str, how: str, at: int) -> None:
        path = data.draw(st.sampled_from(self.outputs()))
        if what == "delete":
            path.unlink()
            self.rotten.discard(path.name)
            self.edited.discard(path.name)
        elif what == "edit":
            time.sleep(0.01)  # an edit within one tick of the file system's clock is not seen by anybody
            damage(path, how, at)
            self.edited.add(path.name)
        elif what == "rot":
            self.rot(path, at)
        else:
            os.utime(path if what == "touch" else self.folder / "b.safetensors")
        self.step()

    def rot(self, path: Path, at: int) -> None:
        """One bit turns as on a disk: with no trace in what the system and mergeflow know of the file."""
        with self.project() as p:
            record = p.records.find(path)
            known = p.memo.find(record.at) if record is not None else None
            if record is None or known is None or fingerprint(path.stat()) != record.at:
                return
            damage(path, "flip", at)
            now = fingerprint(path.stat())
            p.records.put(path, replace(record, at=now))
            p.memo.remember(now, known)
        self.rotten.add(path.name)

    def step(self) -> None:
        COUNTED["steps"] += 1

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            for p in self.dead:
                p.close()
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """One more build, and nothing of the dead is left."""
        with self.machine("", keeps=True):
            for path in self.outputs():
                path.unlink()
            self.edited, self.rotten = set(), set()
            self.made(stamped=False)
            with self.project() as p:
                p.shelf.store.gc(Limits())
                p.shelf.store.verify()  # drops what was damaged and not asked for since
                assert p.shelf.store.verify().damaged == ()
        assert not parts(self.folder)
        assert not list(self.folder.rglob("*.lease"))


def damage(path: Path, how: str, at: int) -> None:
    """`at` in thousandths of the file."""
    content = bytearray(path.read_bytes())
    place = at * len(content) // 1000
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:place])
    elif how == "other":
        path.write_bytes(b"something else " * 50)
    elif content:
        content[place] ^= 1 << (place % 8)
        with path.open("r+b") as file:
            file.write(content)


TestBuildMachine = BuildMachine.TestCase
TestBuildMachine.settings = examples(max_examples=5, stateful_step_count=20)


@pytest.mark.slow
def test_two_thousand_steps() -> None:
    before = COUNTED["steps"]
    run_state_machine_as_test(BuildMachine, settings=examples(max_examples=45, stateful_step_count=50))
    assert COUNTED["steps"] - before >= 2000

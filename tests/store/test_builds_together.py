"""Builds that run at once on one cache folder, with gc always at work and some of them killed: every output is what a
build alone makes, and nothing is left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, TESTS, build, parts, settings, sha256, write_models
from support.checkpoints import Model, numbers, related, weights

import mergeflow
from mergeflow.store.local import LocalStore
from mergeflow.store.objects import Limits

RECIPES = {
    "linear": "outputs:\n  x.safetensors: a + (b - c) * {m}\n  y.safetensors: a*{m} + b*(1 - {m})\n",
    "profile": 'params: {{ k: {{ default: 0.5, "in.*": {m} }} }}\noutputs:\n  x.safetensors: a + (b - c) * k\n',
    "ties": "steps: {{ t: 'ties(a, [b, c], density={d})' }}\noutputs:\n"
    "  x.safetensors: a + (t - a) * {m}\n  y.safetensors: {{ from: t*{m} + b*(1 - {m}), dtype: bfloat16 }}\n",
    "kept": "steps:\n  s: {{ expr: a*0.5 + b*0.2 + c*0.3, keep: true }}\noutputs:\n"
    "  x.safetensors: slerp(s, c, {m})\n  y.safetensors: s\n",
    "sweep": "params: {{ s: {{ sweep: [{m}, 0.5] }} }}\nsteps: {{ t: 'ties(a, [b, c], density={d})' }}\noutputs:\n"
    '  "z-{{s}}.safetensors": a*(1 - s) + t*s\n',
}
SOURCES = "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
TEXTS = {
    f"{name}-{m}-{d}": HEAD + SOURCES + text.format(m=m, d=d)
    for name, text in RECIPES.items() for m in ("0.25", "0.7") for d in ("0.2", "0.6")
}  # fmt: skip

BUILDER = """
import hashlib, json, random, sys, time
from dataclasses import replace
from pathlib import Path
import mergeflow
from mergeflow.build.storing import Shelf
from mergeflow.events import Warned
from mergeflow.plan.cost import Rates
from support.builds import settings
from support.stored import unlock_sqlite

folder, number, locks, seconds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
if locks == "none":  # SQLite's locks are all the locks there are
    unlock_sqlite()
Shelf._rates = lambda self: Rates(1e15, 1e15)
warned = []
def report(event):
    if isinstance(event, Warned):
        warned.append(event.message)
expected = json.loads((folder / "expected.json").read_text())
random = random.Random(number)
root = folder / f"out{number}"
root.mkdir(exist_ok=True)
builds = found = 0
until = time.monotonic() + seconds
while time.monotonic() < until or builds < 5:
    name = random.choice(sorted(expected))
    asked = replace(settings(folder), output_root=root, force=random.random() < 0.1)
    with mergeflow.load(folder / f"{name}.yaml", settings=asked, report=report) as p:
        result = p.build()
        found += p.shelf.store.statistics().hits
    builds += 1
    for path, digest in expected[name].items():
        assert hashlib.sha256((root / path).read_bytes()).hexdigest() == digest, (name, path)
    print(builds, flush=True)
print(json.dumps({"builds": builds, "found": found, "warned": warned}))
"""

COLLECTOR = """
import itertools, sys
from mergeflow.cli.cache import command
from support.stored import unlock_sqlite
folder, locks = sys.argv[1:]
if locks == "none":
    unlock_sqlite()
for size in itertools.cycle(["0B", "20kB", "60kB"]):
    command.main(["gc", "--max-size", size, "--grace", "0s", "--cache", folder], standalone_mode=False)
"""


def models() -> dict[str, Model]:
    rng = np.random.default_rng(3)
    base = {f"{where}.{i}": weights(rng, "F16", (300 + i,)) for where in ("in", "mid", "out") for i in range(6)}
    return {name: {"ids": numbers("I64", range(5)), **{n: related(rng, t) for n, t in base.items()}} for name in "abc"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models, recipes, and what each output is when it is built alone."""
    write_models(tmp_path, models())
    expected = {}
    for name, text in TEXTS.items():
        alone = tmp_path / "alone"
        alone.mkdir(exist_ok=True)
        write_models(alone, models())
        expected[name] = {o.path: sha256(o.target) for o in build(alone, text, force=True).outputs}
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    return tmp_path


def started(code: str, *arguments: object, heard: bool = True) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MERGEFLOW_CACHE"}
    environment |= {"PYTHONPATH": TESTS, "MERGEFLOW_CACHE_SIZE": "40kB"}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE if heard else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("locks", ["sqlite", "none"])
def test_eight_builders_one_collector_and_three_that_are_killed(folder: Path, locks: str) -> None:
    if locks == "none" and os.name == "nt":
        pytest.skip("there is no SQLite without locks on Windows")
    collector = started(COLLECTOR, folder / "cache", locks, heard=False)
    builders = [started(BUILDER, folder, i, locks, 8) for i in range(8)]
    doomed = [started(BUILDER, folder, 8 + i, locks, 1000) for i in range(3)]
    for i, process in enumerate(doomed):
        assert process.stdout is not None
        for _ in range(2 + i):
            process.stdout.readline()
        time.sleep(0.04 * i)
        process.kill()
        process.communicate()
    told = []
    for process in builders:
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        told.append(json.loads(out.splitlines()[-1]))
    assert collector.poll() is None, collector.communicate()[1]
    collector.kill()
    collector.communicate()
    assert sum(each["builds"] for each in told) >= 40
    assert max(each["found"] for each in told) > 0
    if locks == "sqlite":
        assert [each["warned"] for each in told] == [[]] * 8

    store = LocalStore(folder / "cache", lambda message: None)
    assert store.verify().damaged == ()
    name = "kept-0.7-0.2"
    for i in range(11):  # one more build in each place
        asked = replace(settings(folder), output_root=folder / f"out{i}")
        with mergeflow.load(folder / f"{name}.yaml", settings=asked) as p:
            p.build()
        for path, digest in json.loads((folder / "expected.json").read_text())[name].items():
            assert sha256(folder / f"out{i}" / path) == digest
    assert store.verify().damaged == ()
    assert store.gc(Limits(max_size=0, grace=0)).left == 0
    assert not parts(folder)
    assert [p for p in folder.glob("cache/objects/**/*") if p.is_file()] == []
    assert list(folder.glob("cache/leases/*")) == []
    store.close()

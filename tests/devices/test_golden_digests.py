"""Digests of what exact methods make, committed: every device must give them, on every machine.

`UPDATE_GOLDEN=1` rewrites the file; that is right only together with a new NUMERICS or a kernel's new version.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from support.builds import HEAD, Heard, build, write_models
from support.checkpoints import Model, Tensor
from test_device_contract import EXACT, made

from mergeflow.digest import CHUNK
from mergeflow.executor import _sums, devices
from mergeflow.executor.device import KERNELS_VARIABLE
from mergeflow.executor.parity import ROOM, computed, programs
from mergeflow.plan.place import RESIDENT, STREAMED, Placement

FILE = Path(__file__).with_name("digests.json")
UPDATE = "UPDATE_GOLDEN"
RECIPE = (
    HEAD
    + """sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params: { s: { sweep: [0.25, 0.3, 1] } }
steps: { half: { expr: a*0.4 + b*0.6, round: bfloat16 } }
outputs:
  "difference-{s}.safetensors": a + (b - c)*s
  float32.safetensors: { from: a*0.1 + b*0.2 + c*0.7, dtype: float32 }
  bfloat16.safetensors: { from: a*0.1 + b*0.2 + c*0.7, dtype: bfloat16 }
  float8.safetensors: { from: a + (b - c)*0.3, dtype: float8_e4m3fn }
  rounded.safetensors: half + (b - c)*0.123456789
  ties.safetensors: ties(c, [a, b], density=0.2)
  slerp.safetensors: slerp(a, b, 0.3)
"""
)


def check(entry: str, found: dict[str, str]) -> None:
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get(UPDATE):
        FILE.write_text(json.dumps(known | {entry: found}, indent=1, sort_keys=True) + "\n")
        return
    assert found == known[entry]


@pytest.fixture(params=EXACT)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(KERNELS_VARIABLE, "torch" if request.param == "torch" else "")
    return str(request.param)


def test_sums(kind: str) -> None:
    strategy = RESIDENT if "resident" in kind else STREAMED
    _sums.plain(kind == "native, plain")
    worker = made(kind).worker(Placement(kind, strategy, 1, CHUNK, 3000, 1000, 0, ""), ROOM, heard := Heard())
    try:
        assert not heard  # the device itself is used
        check("sums", {title: blake3(computed(worker, program)).hexdigest() for title, program in programs()})
    finally:
        _sums.plain(False)
        worker.close()


def drawn(name: str, tensor: str, shape: tuple[int, ...]) -> Tensor:
    """float16 numbers that no library has a hand in: sums of words of a hash, over a power of two."""
    n = int(np.prod(shape))
    raw = blake3(f"{name} {tensor}".encode()).digest(length=n * 8)
    common = blake3(tensor.encode()).digest(length=n * 8)
    own, base = (np.frombuffer(x, np.int16).reshape(-1, 4).sum(axis=1, dtype=np.int32) for x in (raw, common))
    return Tensor("F16", shape, ((base * 16 + own) / 2.0**22).astype(np.float16).tobytes())


def test_builds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"large": (1_100_003,), "w": (320, 77), "b": (7,), "scalar": ()}
    models: dict[str, Model] = {m: {t: drawn(m, t, shape) for t, shape in shapes.items()} for m in "abc"}
    write_models(tmp_path, models)
    device = made(kind)
    monkeypatch.setattr(devices, "find", lambda name: device)
    _sums.plain(kind == "native, plain")
    try:
        result = build(tmp_path, RECIPE, heard := Heard(), jobs=2)
    finally:
        _sums.plain(False)
    assert not [said for said in heard.warnings if "CPU" in said]
    check("builds", {built.path: built.digest for built in result.outputs})

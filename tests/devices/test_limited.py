"""Merges in an address space of 1.5 GB, and models that are larger than any memory."""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path

import pytest
from support.builds import HEAD, build, project, python

from bench import check, layout, limited, workloads
from mergeflow.digest import hash_bytes
from mergeflow.formats.files import fingerprint
from mergeflow.sources.memo import Known, Memo

LIMIT = 1_500_000_000
RECIPE = (
    HEAD
    + """sources: { a: sdxl-A.safetensors, b: sdxl-B.safetensors, c: sdxl-C.safetensors }
outputs:
  linear.safetensors: a + (b - c) * 0.3
  ties.safetensors: ties(c, [a, b], density=0.2)
"""
)
LIMITED = """
import resource, sys
from pathlib import Path
from support.builds import build
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
for built in build(Path(sys.argv[1]), sys.argv[2]).outputs:
    print(built.digest)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limited")
    for letter in "ABC":
        layout.write(folder / f"sdxl-{letter}.safetensors", layout.sdxl_layout(shrink=32), layout.Model(letter))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="an address space is limited with setrlimit")
def test_linear_and_ties_with_a_limited_address_space(models: Path) -> None:
    time.sleep(0.03)
    digests = python(LIMITED, models, RECIPE, LIMIT).stdout.split()
    a, b, c = inputs = [models / file for file in workloads.DIFFERENCE.files("sdxl").values()]
    assert check.check(workloads.DIFFERENCE, inputs, models / "linear.safetensors") == 0  # all correctly rounded
    names = limited.sample(layout.sdxl_layout(shrink=32))
    assert check.check_ties(c, [a, b], 0.2, models / "ties.safetensors", names) < 1
    assert digests == [built.digest for built in build(models, RECIPE, force=True).outputs]


OPENED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
from mergeflow.formats.header import check_with_library
check_with_library(Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an address space is limited with setrlimit")
def test_a_file_that_is_larger_than_the_address_space(tmp_path: Path) -> None:
    """The safetensors library maps files; what cannot be mapped is read all the same."""
    entry = {"w": {"dtype": "F16", "shape": [LIMIT], "data_offsets": [0, 2 * LIMIT]}}
    head = json.dumps(entry).encode()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + 2 * LIMIT)
    python(OPENED, tmp_path / "large.safetensors", LIMIT)


# -- 140 GB ------------------------------------------------------------------------------------------------------------

HIDDEN, INNER, NARROW, LAYERS, WORDS = 8192, 28_672, 1024, 80, 32_000
SHARD = 10 * 10**9
LARGE = (
    HEAD
    + """sources:
  a: { path: a/model.safetensors.index.json, arch: llama }
  b: { path: b/model.safetensors.index.json, arch: llama }
outputs:
  whole.safetensors: { from: a*0.5 + b*0.5, shard_size: 10GB }
  part.safetensors: { from: a*0.5 + b*0.5, only: ["model.layers.0.self_attn.*"] }
"""
)
PART = """
import sys
from pathlib import Path
from support.builds import project
from support.memory import watched
with watched() as peak, project(Path(sys.argv[1]), sys.argv[2], memory=250_000_000, jobs=2) as p:
    result = p.build(["part.safetensors"])
print(peak.most, result.outputs[0].nbytes)
"""


def tensors() -> list[tuple[str, tuple[int, ...]]]:
    """The layout of a model of 69 thousand million parameters, which 16 bits make 138 GB of."""
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (WORDS, HIDDEN))]
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        found += [(f"{at}self_attn.{part}_proj.weight", (HIDDEN, HIDDEN)) for part in "qo"]
        found += [(f"{at}self_attn.{part}_proj.weight", (NARROW, HIDDEN)) for part in "kv"]
        found += [(f"{at}mlp.{part}_proj.weight", (INNER, HIDDEN)) for part in ("gate", "up")]
        found += [(f"{at}mlp.down_proj.weight", (HIDDEN, INNER))]
        found += [(f"{at}{part}_layernorm.weight", (HIDDEN,)) for part in ("input", "post_attention")]
    return [*found, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (WORDS, HIDDEN))]


def write_sparse(folder: Path, memo: Memo, seed: int) -> int:
    """The model in shards that take no disk, and what hashing them would have left in the memo; its size."""
    folder.mkdir()
    shards: list[list[tuple[str, tuple[int, ...], int]]] = [[]]
    room = SHARD
    for name, shape in tensors():
        nbytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if nbytes > room:
            shards.append([])
            room = SHARD
        shards[-1].append((name, shape, nbytes))
        room -= nbytes
    where, total = {}, 0
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        entries, at = {}, 0
        for name, shape, nbytes in shard:
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + nbytes]}
            where[name], at = file, at + nbytes
        head = json.dumps(entries).encode()
        head += b" " * (-len(head) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(head)) + head)
            out.truncate(8 + len(head) + at)
        remember(memo, folder / file, [name for name, *_ in shard], seed)
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def remember(memo: Memo, file: Path, names: list[str], seed: int) -> None:
    digests = tuple(hash_bytes(f"{seed} {name}".encode()) for name in names)
    nothing = bytes(4 * len(names))
    known = Known(digests[0], digests, digests, (0,) * len(names), nothing, nothing, b"")
    memo.remember(fingerprint(file.stat()), known)


def test_a_model_of_140_gigabytes(tmp_path: Path) -> None:
    """Planned whole from headers and the memo; a part of it is built in 250 MB, whatever the rest would take."""
    memo = Memo(tmp_path / "memo", print)
    try:
        sizes = [write_sparse(tmp_path / name, memo, seed) for seed, name in enumerate("ab")]
    except OSError as error:
        pytest.skip(f"this file system holds no sparse files of 10 GB: {error}")
    memo.close()
    assert min(sizes) > 135 * 10**9
    with project(tmp_path, LARGE, memory=2 * 10**9) as p:
        plan = p.plan()
    whole, part = plan.outputs
    assert whole.layout.file_size > sizes[0]
    assert whole.placement is not None
    assert whole.placement.peak <= 2 * 10**9
    assert {work.program >= 0 for work in whole.works} == {True}
    assert len(part.works) == 4
    peak, written = map(int, python(PART, tmp_path, LARGE).stdout.split())
    assert written > 300_000_000
    assert peak < 250_000_000

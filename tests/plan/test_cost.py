"""What planning must not do, and the largest recipes: no torch, no tensor, no recursion. `bench/planning.py` says how
long they take."""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path

import pytest
from support.builds import HEAD, Heard, build, plan, project, python, recipe, write_models
from support.checkpoints import numbers, read, write

from mergeflow.events import PhaseStarted, silent
from mergeflow.sources.identify import identify
from mergeflow.sources.memo import Memo


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_models(tmp_path, {m: {"w": numbers("F32", [i + 1, i + 2])} for i, m in enumerate("abc")})
    return tmp_path


def test_planning_imports_no_torch_and_reads_nothing_twice(small: Path) -> None:
    code = """
import sys
from pathlib import Path
import mergeflow
from support.builds import settings
heard = []
folder = Path(sys.argv[1])
p = mergeflow.load(folder / "recipe.yaml", settings=settings(folder), report=heard.append)
made = p.plan()
assert made.outputs[0].build
assert "torch" not in sys.modules, "torch"
print(len([e for e in heard if type(e).__name__ == "PhaseStarted"]), made.outputs[0].key)
"""
    (small / "recipe.yaml").write_text(recipe("a + (b - c)*0.3"))
    time.sleep(0.03)
    first = python(code, small).stdout.split()
    again = python(code, small, PYTHONHASHSEED="7").stdout.split()
    assert first[0] == "3"
    assert again[0] == "0"
    assert first[1] == again[1]


def test_planning_again_opens_no_tensor(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the memo warm, only headers are read."""
    time.sleep(0.03)
    plan(small, recipe("a + (b - c)*0.3"))
    from mergeflow.formats.files import ReadFile

    reads: list[tuple[int, int]] = []
    original = ReadFile.read_into

    def counted(self: ReadFile, view: memoryview, offset: int) -> None:
        header = struct.unpack("<Q", self.path.read_bytes()[:8])[0]
        reads.append((offset, offset + view.nbytes - 8 - header))
        original(self, view, offset)

    monkeypatch.setattr(ReadFile, "read_into", counted)
    plan(small, recipe("a + (b - c)*0.3"))
    assert reads
    for offset, over in reads:
        assert over <= 24 if offset == 0 else over <= 0  # the first look takes 32 bytes, to tell formats apart


def large_model(path: Path, count: int, seed: int) -> None:
    entries, at = {}, 0
    for i in range(count):
        entries[f"model.layers.{i // 100}.block.{i % 100}.attention.weight"] = {
            "dtype": "F16", "shape": [2, 2], "data_offsets": [at, at + 8]}  # fmt: skip
        at += 8
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + seed.to_bytes(4, "little") * (at // 4))


@pytest.mark.slow
def test_fifty_thousand_tensors_of_three_models(tmp_path: Path) -> None:
    for i, m in enumerate("abc"):
        large_model(tmp_path / f"{m}.safetensors", 50_000, i + 1)
    time.sleep(0.03)
    memo = Memo(tmp_path / "memo", print)
    for m in "abc":
        identify(tmp_path / f"{m}.safetensors", memo, silent)
    memo.close()
    heard = Heard()
    with project(tmp_path, recipe("a + (b - c)*0.3"), heard) as p:
        made = p.plan()
    _, units = made.work(made.outputs)
    assert not [e for e in heard if isinstance(e, PhaseStarted)]
    assert len(made.outputs[0].works) == 50_000
    assert len(units) < 50


def test_a_chain_of_ten_thousand_steps(small: Path) -> None:
    steps = "".join(f"  s{i}: s{i - 1} + (b - c)*0.0001\n" for i in range(1, 10_000))
    text = HEAD + (
        "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
        f"steps:\n  s0: a\n{steps}outputs: {{ mix.safetensors: s9999, same.safetensors: a + (b - c)*0.9999 }}\n"
    )
    limit = sys.getrecursionlimit()
    made = plan(small, text)
    assert sys.getrecursionlimit() == limit
    assert made.outputs[0].key == made.outputs[1].key


def test_a_chain_with_ever_longer_fractions(small: Path) -> None:
    """Each step mixes the one before with b: the shares have thousands of digits."""
    steps = "".join(f"  s{i}: s{i - 1}*0.7 + b*0.3\n" for i in range(1, 2_000))
    text = HEAD + (
        f"sources: {{ a: a.safetensors, b: b.safetensors }}\nsteps:\n  s0: a\n{steps}"
        "outputs: { mix.safetensors: s1999 }\n"
    )
    build(small, text)
    assert read(small / "mix.safetensors")["w"] == read(small / "b.safetensors")["w"]


def test_a_graph_of_depth_a_hundred_with_two_to_the_hundred_paths(small: Path) -> None:
    steps = "".join(f"  x{i}: x{i - 1} + x{i - 1} - y{i - 1}\n  y{i}: y{i - 1}*2 - x{i - 1}\n" for i in range(1, 101))
    text = HEAD + (
        f"sources: {{ a: a.safetensors, b: b.safetensors }}\nsteps:\n  x0: a\n  y0: b\n{steps}"
        "outputs: { mix.safetensors: x100, two.safetensors: x1 }\n"
    )
    made = plan(small, text)
    # x - y triples at each level, x + y stays: x100 = (1 + 3^100)/2·a + (1 - 3^100)/2·b
    (integers, divisor) = made.outputs[0].resolved.forms[0].integers()
    assert divisor == 1
    assert sorted(integers) == [(1 - 3**100) // 2, (1 + 3**100) // 2]


def test_a_shared_step_used_twice_in_each_of_a_hundred(small: Path) -> None:
    steps = "".join(f"  x{i}: x{i - 1} + x{i - 1} - x{i - 1}\n" for i in range(1, 101))
    text = HEAD + f"sources: {{ a: a.safetensors }}\nsteps:\n  x0: a\n{steps}outputs: {{ mix.safetensors: x100 }}\n"
    made = plan(small, text)
    assert made.outputs[0].resolved.forms[0].integers() == ((1,), 1)


def test_deep_brackets_and_long_sums(small: Path) -> None:
    deep = "(" * 500 + "a" + ")" * 500
    long = "a" + " + (b - c)*0.001" * 2_000
    made = plan(small, HEAD + "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
                f"outputs: {{ mix.safetensors: '{long}', two.safetensors: '{deep} + (b - c)*2' }}\n")  # fmt: skip
    assert made.outputs[0].key == made.outputs[1].key


def test_a_graph_of_rounding_points_that_share(small: Path) -> None:
    """Each step rounds a sum of the one before, used twice; forty levels have 2**40 paths."""
    steps = "".join(
        f"  s{i}: {{ expr: s{i - 1}*0.5 + (s{i - 1} - b)*0.5 + b*0.5, round: float16 }}\n" for i in range(1, 41)
    )
    text = HEAD + (
        "sources: { a: a.safetensors, b: b.safetensors }\n"
        f"steps:\n  s0: a\n{steps}outputs: {{ mix.safetensors: s40 }}\n"
    )
    build(small, text)
    assert read(small / "mix.safetensors")["w"] == read(small / "a.safetensors")["w"]


def test_many_profiles_are_one_case_each(tmp_path: Path) -> None:
    """Five thousand tensors, fifty selectors: fifty-one cases."""
    model = {f"layers.{i // 100}.w{i}": numbers("F16", [1.0]) for i in range(5_000)}
    other = {name: numbers("F16", [2.0]) for name in model}
    write(tmp_path / "a.safetensors", model)
    write(tmp_path / "b.safetensors", other)
    entries = ", ".join(f"'layers.{i}.*': 0.{i + 10}" for i in range(49))
    text = recipe("weighted_sum(a, b, k)", "ab", more=f"params: {{ k: {{ default: 0, {entries} }} }}\n")
    made = plan(tmp_path, text)
    assert len(made.outputs[0].resolved.forms) == 50

"""One result in every container: others load it, its digest is one, and what is made of it is the same file."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from outputs import EXPRESSION, SHARDED, build, built, every, linked, loaded, parts, same, sha256, torch_loaded, wanted
from support.builds import HEAD, project, python
from support.checkpoints import any_bits, metadata, write
from support.checkpoints import read as read_model

from mergeflow.formats.layout import canonical_order, lay_out
from mergeflow.formats.output import Space
from mergeflow.formats.sharded import lay_out_shards
from mergeflow.formats.torchlayout import lay_out_torch
from mergeflow.tensors import DType

FILES = ("one.safetensors", "two.ckpt", "three.pt", "four.bin", SHARDED)


@pytest.fixture(scope="module")
def made(sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = linked(tmp_path_factory.mktemp("made"), sd15)
    outputs = "".join(f"  {path}: {text}\n" for path, text in every().items())
    result = build(folder, wanted(outputs), jobs=2)
    assert len({output.digest for output in result.outputs}) == 1
    return folder


def test_others_load_the_same_tensors_from_each(made: Path) -> None:
    first = loaded(made / FILES[0])
    assert len(first) == 1131
    for name in FILES[1:]:
        same(first, loaded(made / name))
    assert not parts(made)


def test_a_checkpoint_is_a_sound_zip_with_a_state_dict(made: Path) -> None:
    for name in FILES[1:4]:
        with zipfile.ZipFile(made / name) as archive:
            assert archive.testzip() is None  # every CRC-32, taken in pieces by two threads
            assert all(re.fullmatch(r"([^/]+)/((data/\d+)|version|(data\.pkl))", n) for n in archive.namelist())
    assert list(torch_loaded(made / "two.ckpt")) == ["state_dict"]


def test_shards_are_named_and_filled_as_transformers_does(made: Path) -> None:
    index = json.loads((made / SHARDED).read_text(encoding="utf-8"))
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"mix-{i:05}-of-{len(names):05}.safetensors" for i in range(1, len(names) + 1)]
    sizes = [sum(t.nbytes for t in loaded(made / name).values()) for name in names]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert len(names) == 5
    assert all(1_000_000 < size <= 2_000_000 for size in sizes[:-1])
    assert {metadata(made / name)["format"] for name in names} == {"pt"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_same_bytes_with_any_number_of_threads(made: Path, tmp_path: Path, sd15: Path, jobs: int) -> None:
    linked(tmp_path, sd15)
    build(
        tmp_path, wanted("".join(f"  {path}: {text}\n" for path, text in every().items())), jobs=jobs, memory=300 << 20
    )
    for path in [*made.glob("mix-*.safetensors"), *made.glob("*.mergeflow.json"), *(made / name for name in FILES)]:
        assert sha256(path) == sha256(tmp_path / path.name), path.name


def test_what_is_made_of_any_of_them_is_one_file(made: Path, sd15: Path, tmp_path: Path) -> None:
    found = set()
    for i, name in enumerate(FILES):
        folder = linked(tmp_path / str(i), sd15) if (tmp_path / str(i)).mkdir() is None else tmp_path
        build(
            folder, wanted("  out.safetensors: x*0.5 + b*0.5\n", sources={"x": str(made / name), "b": "b.safetensors"})
        )
        found.add(sha256(folder / "out.safetensors"))
    assert len(found) == 1


@pytest.mark.slow
def test_nothing_to_do_the_second_time(made: Path) -> None:
    text = (made / "recipe.yaml").read_text()
    files = [path for path in made.iterdir() if path.is_file() and path.name != "recipe.yaml"]
    before = [path.stat().st_mtime_ns for path in files]
    assert not any(built(build(made, text)))
    (made / "cache" / "index.sqlite").unlink()  # the files prove themselves, by what they say and their digests
    assert not any(built(build(made, text)))
    assert not any(built(build(made, text)))
    assert [path.stat().st_mtime_ns for path in files] == before


def test_every_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    codes = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL")
    shapes = [(), (3,), (2, 3), (0, 4), (70_000, 1)]
    model = {f"{code}.名 {i}": any_bits(rng, code, s) for code in codes for i, s in enumerate(shapes)}
    write(tmp_path / "a.safetensors", model)
    outputs = "".join(f"  {name}: a\n" for name in ("x.safetensors", "x.ckpt", "x.pth"))
    build(tmp_path, f"{HEAD}sources: {{ a: a.safetensors }}\noutputs:\n{outputs}"
          "  y.safetensors: { from: a, shard_size: 1MB }\n")  # fmt: skip
    assert read_model(tmp_path / "x.safetensors") == model
    first = loaded(tmp_path / "a.safetensors")
    for name in ("x.ckpt", "x.pth", "y.safetensors.index.json"):
        found = loaded(tmp_path / name)
        assert found.keys() == first.keys()
        for key, tensor in first.items():
            assert found[key].dtype == tensor.dtype
            raw = [t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in (tensor, found[key])]
            assert raw[0] == raw[1], key


def test_a_tensor_larger_than_a_shard_has_one_to_itself() -> None:
    sizes = {"a": 10, "b": 300, "c": 90, "d": 20, "e": 0, "f": 100}
    layout = lay_out_shards([(n, DType.U8, (size,)) for n, size in sizes.items()], {}, 100)
    assert [[t.name for t in shard.tensors] for shard in layout.shards] == [["a"], ["b"], ["c"], ["d", "e"], ["f"]]
    assert [[t.name for t in layout.tensors[held]] for held in layout.holds()] == [
        ["a"], ["b"], ["c"], ["d", "e"], ["f"], [],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["one", "shards", "torch"])
def test_the_space_of_an_output_has_no_holes(kind: str) -> None:
    """Every byte of every tensor has its place in a file, and no two have the same."""
    rng = np.random.default_rng(5)
    tensors = [(f"t{i}", DType.F16 if i % 3 else DType.U8, (int(rng.integers(0, 40)),)) for i in range(60)]
    makers = {"one": lay_out, "shards": lambda t, m: lay_out_shards(t, m, 200),
              "torch": lambda t, m: lay_out_torch(t, m, nested=True)}  # fmt: skip
    layout = makers[kind](tensors, {})
    assert [(t.name, t.dtype, t.shape) for t in layout.tensors] == canonical_order(tensors)
    space, first = Space(layout), layout.tensors[0].start
    for begin in (first, first + 7, first + 211):
        seen, position = set(), begin
        for n in (1, 30, 500, space.end - begin - 531):
            at = position
            for i, offset, a, b in space.cut(position, n):
                assert position + a == at
                at += b - a
                stretch = space.stretches[i]
                places = {(stretch.file, stretch.at + offset + k) for k in range(b - a)}
                assert len(places) == b - a
                assert not places & seen
                seen |= places
            assert at == position + n
            position += n


def test_a_delta_in_a_ckpt_is_one_when_it_is_read_back(sd15: Path, tmp_path: Path) -> None:
    linked(tmp_path, sd15)
    build(tmp_path, wanted("  d.ckpt: b - c\n"))
    assert json.loads((tmp_path / "d.ckpt.mergeflow.json").read_text())["metadata"]["mergeflow.kind"] == "delta"
    sources = {"a": "a.safetensors", "d": "d.ckpt"}
    build(tmp_path, wanted("  mix.safetensors: a + d\n", sources=sources))
    claims = tmp_path / "d.ckpt.mergeflow.json"
    build(tmp_path, wanted("  d.ckpt: b\n"), force=True)
    other = '"mergeflow.kind": "delta", "mergeflow.digest": "b3:0'  # what is said of some other file
    claims.write_text(claims.read_text().replace('"mergeflow.digest": "b3:', other))
    with project(tmp_path, wanted("  mix.safetensors: a*0.5 + d*0.5\n", sources=sources)) as p:
        assert not p.facts(1).delta


def test_one_file_becomes_shards_and_back(sd15: Path, tmp_path: Path) -> None:
    """What an output was before it was written otherwise goes, as loaders would find it; what is not ours stays."""
    linked(tmp_path, sd15)
    one, shards = f"  mix.safetensors: {EXPRESSION}\n", "  mix.safetensors: {{ from: {}, shard_size: {} }}\n"

    def names() -> list[str]:
        return sorted(p.name for p in tmp_path.glob("mix*") if "recipe" not in p.name)

    build(tmp_path, wanted(one))
    (result,) = build(tmp_path, wanted(shards.format(EXPRESSION, "4MB"))).outputs
    three = [f"mix-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names() == [*three, SHARDED]
    assert result.target == tmp_path / SHARDED
    (result,) = build(tmp_path, wanted(shards.format(EXPRESSION, "6MB"))).outputs
    assert result.reason == "it is written otherwise: shards of 4.0 MB → shards of 6.0 MB"
    assert names() == ["mix-00001-of-00002.safetensors", "mix-00002-of-00002.safetensors", SHARDED]
    build(tmp_path, wanted(one))
    assert names() == ["mix.safetensors"]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A .ckpt and shards of 400 MB, one tensor of 300 MB, made in less memory than that; torch alone takes 150 MB."""
    code = """
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from support.builds import build
from support.memory import watched
folder = Path(sys.argv[1])
values = {"w": np.ones((150, 1 << 20), np.float16), "v": np.ones((50, 1 << 20), np.float16)}
save_file(values, folder / "a.safetensors")
del values
text = (
    "mergeflow: 1\\nsources: { a: a.safetensors }\\nparams: { m: 0.3 }\\noutputs:\\n"
    "  x.ckpt: a*m + a*0.7\\n  y.safetensors: { from: a, dtype: bfloat16, shard_size: 100MB }\\n"
)
with watched() as peak:
    build(folder, text, jobs=2, memory=400 << 20)
print(peak.most - peak.before >> 20)
"""
    assert int(python(code, tmp_path).stdout) < 350

"""Files that torch.save wrote: what is read are the bytes that torch.load gives."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_files import ALL, UNTYPED, assert_same, legacy_with, torch_loaded, zip_with

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.formats.contents import read_contents
from mergeflow.formats.torchwriter import write_torch_zip_plan
from mergeflow.tensors import DType

CONTAINERS = {True: "torch zip", False: "torch legacy pickle"}
both = pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])


def saved(path: Path, what: object, as_zip: bool = True, **options: int) -> Path:
    torch.save(what, path, _use_new_zipfile_serialization=as_zip, **options)
    return path


def state_dict(as_zip: bool) -> dict[str, torch.Tensor]:
    base = torch.arange(100, dtype=torch.float32)
    made = {label: torch.arange(7).to(dtype) for label, dtype in ALL.items() if as_zip or label not in UNTYPED}
    return made | {
        "a view": base[10:20],
        "another view.of it": base[12:32].view(4, 5),
        "tied": base,
        "ρ.名前": torch.nn.Parameter(torch.ones(2, 3)),
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.0),
        "ones anyhow": torch.arange(4.0)[1:3].reshape(2, 1, 1).as_strided((2, 1, 1), (1, 77, 0)),
        "none of it": torch.zeros(4, 4).t()[:, :0],
    }


@both
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_tensor_is_what_torch_loads(tmp_path: Path, as_zip: bool, protocol: int) -> None:
    path = saved(tmp_path / "m.ckpt", state_dict(as_zip), as_zip, pickle_protocol=protocol)
    found = read_contents(path)
    expected = torch_loaded(path) if protocol == 2 else state_dict(as_zip)
    assert_same(found, expected)
    assert found.container == CONTAINERS[as_zip]
    assert (found.files, found.metadata, found.extras, found.other) == ((path,), {}, {}, {})


def test_old_files_of_types_that_torch_itself_cannot_load(tmp_path: Path) -> None:
    values = {label: torch.arange(5).to(ALL[label]) for label in UNTYPED}
    assert_same(read_contents(saved(tmp_path / "m.pt", values, False)), values)


def test_tied_weights_are_the_same_bytes(tmp_path: Path) -> None:
    t = torch.ones(8)
    found = read_contents(saved(tmp_path / "m.pt", {"a": t, "b": t, "c": t[2:4]}))
    assert found.tensors["a"].start == found.tensors["b"].start == found.tensors["c"].start - 8


@both
def test_a_training_checkpoint(tmp_path: Path, as_zip: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    step = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3).t()}
    groups = [{"lr": 1e-4, "betas": (0.9, 0.999), "foreach": None, "params": [0]}]
    what = {
        "state_dict": module.state_dict(),
        "optimizer_states": [{"state": {0: step}, "param_groups": groups}],
        "global_step": 470000,
        "epoch": np.int64(3),
        "loss": np.float32(0.5),
        "array": np.arange(3),
        "pytorch-lightning_version": "1.4.2",
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "raw": b"\xff\x00",
        "buffer": bytearray(b"1"),
        "set": {1, 2},
        "complex": 1j,
        "counts": Counter({"a": 1}),
        "default": defaultdict(list, {1: [2]}),
        "odd keys": {(1, 2): 3, torch.float16: 1},
        "nothing": {},
        "none": None,
    }
    found = read_contents(saved(tmp_path / "m.ckpt", what, as_zip))
    assert_same(found, module.state_dict())
    assert found.extras["global_step"] == "470000"
    assert found.extras["epoch"] == "3"
    assert found.extras["loss"] == "0.5"
    assert found.extras["read from"] == "state_dict"
    assert "optimizer_states" in found.extras["not read"]
    assert "nothing" not in found.extras["not read"]


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda sd: {"state_dict": {"state_dict": sd}}, None),
        (lambda sd: {"state_dict": OrderedDict(sd), "stray": torch.ones(1)}, "state_dict"),
        (lambda sd: {"model": sd, "optimizer": {"state": {0: {"exp": torch.ones(1)}}}}, "model"),
        (lambda sd: {"state_dict": "no", **sd}, ""),
        (lambda sd: {"state_dict": {"state_dict": sd, "x": torch.ones(1)}}, "state_dict.state_dict"),
    ],
)
def test_where_the_model_is(tmp_path: Path, wrap: object, where: str | None) -> None:
    sd = {"a": torch.ones(2), "b": torch.zeros(3)}
    path = saved(tmp_path / "m.pt", wrap(sd))  # type: ignore[operator]
    if where is None:
        with pytest.raises(IntegrityError, match="no tensors"):
            read_contents(path)
        return
    found = read_contents(path)
    assert_same(found, sd)
    assert found.extras.get("read from", "") == where


def test_two_models_in_a_file_are_not_chosen_from(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"params": {"a": torch.ones(2)}, "params_ema": {"a": torch.ones(2)}})
    with pytest.raises(IntegrityError, match="more than one set of tensors: params, params_ema"):
        read_contents(path)


@both
@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.ones(3, 1).expand(3, 4), "expanded"),
        (lambda: torch.ones(3, 4).t(), "transposed"),
        (lambda: torch.ones(3, 4)[:, 1:3], "cut out"),
        (lambda: torch.ones(2, dtype=torch.complex64), "complex64"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conj"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.ones(2, device="meta"), "meta"),
    ],
)
def test_what_is_no_range_of_bytes(tmp_path: Path, make: object, reason: str, as_zip: bool) -> None:
    path = saved(tmp_path / "m.pt", {"fine": torch.ones(1), "bad.one": make()}, as_zip)  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=f"(?s)'bad.one' cannot be read: .*{reason}"):
        read_contents(path)
    path = saved(tmp_path / "n.pt", {"state_dict": {"a": torch.ones(1)}, "else": {"bad": make()}}, as_zip)  # type: ignore[operator]
    assert list(read_contents(path).tensors) == ["a"]


def test_a_tensor_with_attributes(tmp_path: Path) -> None:
    t = torch.nn.Parameter(torch.arange(4.0))
    t.note = "x"  # type: ignore[attr-defined]
    u = torch.arange(3.0)
    u.note = "y"  # type: ignore[attr-defined]
    assert_same(read_contents(saved(tmp_path / "m.pt", {"t": t, "u": u})), {"t": t, "u": u})


def test_a_lightning_callback_becomes_a_mark(tmp_path: Path) -> None:
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    made = callback + b")\x81}X\4\0\0\0bestK\1sb"
    pickled = (
        b"\x80\x02}(X\x0a\0\0\0state_dict}X\1\0\0\0a" + TENSOR + b"sX\x09\0\0\0callbacks}" + callback + made + b"su."
    )
    found = read_contents(zip_with(tmp_path / "m.ckpt", pickled, {"0": bytes(range(8))}))
    assert found.extras == {"read from": "state_dict", "not read": "callbacks"}
    assert found.tensors["a"].shape == (2,)


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\2tQ"
    b"K\0K\2\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
)


def test_kinds_of_files(tmp_path: Path) -> None:
    layers = {"linear1.weight": torch.ones(4, 2), "linear1.bias": torch.ones(4)}
    found = read_contents(saved(tmp_path / "h.pt", {2: (layers, layers), 4: (layers, layers), "step": 5}))
    assert found.other == {"hypernetwork": "it holds layers for the sizes 2, 4"}
    assert found.extras == {"step": "5"}
    assert set(found.tensors) == {f"{n}.{i}.linear1.{w}" for n in (2, 4) for i in (0, 1) for w in ("weight", "bias")}

    parameters = torch.nn.ParameterDict({"*": torch.ones(2, 8)})
    what = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 8)}, "name": "x", "step": 9}
    found = read_contents(saved(tmp_path / "t.pt", what))
    assert "textual inversion" in found.other
    assert found.extras["name"] == "x"
    assert_same(found, {"string_to_param.*": torch.ones(2, 8)})
    found = read_contents(saved(tmp_path / "u.pt", what | {"string_to_param": parameters}))
    assert_same(found, {"string_to_param.*": parameters["*"]})

    vae = {f"{p}.conv_in.weight": torch.ones(2) for p in ("encoder", "decoder")} | {"loss.x": torch.ones(1)}
    assert "vae" in read_contents(saved(tmp_path / "v.vae.pt", {"state_dict": vae})).other
    assert "lora" in read_contents(saved(tmp_path / "l.pt", {"a.lora_up.weight": torch.ones(2, 2)})).other
    assert "textual inversion" in read_contents(saved(tmp_path / "e.bin", {"<cat>": torch.ones(8)})).other


@pytest.mark.parametrize("what", [[torch.ones(1)], torch.ones(1), {"a": 1}, {1: torch.ones(1)}, 5])
@both
def test_files_without_a_model(tmp_path: Path, what: object, as_zip: bool) -> None:
    with pytest.raises(IntegrityError):
        read_contents(saved(tmp_path / "m.pt", what, as_zip))


# Damage


@both
def test_every_truncation_is_an_error(tmp_path: Path, as_zip: bool) -> None:
    whole = saved(tmp_path / "m.pt", {"a": torch.ones(5), "b": torch.zeros(3)}, as_zip).read_bytes()
    path = tmp_path / "cut.pt"
    for n in range(0, len(whole), 5 if as_zip else 1):
        path.write_bytes(whole[:n])
        with pytest.raises(IntegrityError):
            read_contents(path)


@pytest.mark.parametrize(
    ("others", "reason"),
    [({"byteorder": b"big"}, "endian"), ({"version": b"99\n"}, "version"), ({"version": b"\xff"}, "version"),
     ({"constants.pkl": b""}, "TorchScript")],
)  # fmt: skip
def test_archives_of_another_kind(tmp_path: Path, others: dict[str, bytes], reason: str) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", b"\x80\x02}X\1\0\0\0a" + TENSOR + b"s.")
        z.writestr("x/data/0", bytes(8))
        for name, data in others.items():
            z.writestr(f"x/{name}", data)
    with pytest.raises(IntegrityError, match=reason):
        read_contents(path)


def test_compressed_encrypted_missing_and_small_entries(tmp_path: Path) -> None:
    pickled = b"\x80\x02}X\1\0\0\0a" + TENSOR + b"s."
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:  # a bomb: never inflated, so never dangerous
        z.writestr("x/data.pkl", bytes(50_000_000))
    with pytest.raises(IntegrityError, match="compressed"):
        read_contents(path)
    with pytest.raises(IntegrityError, match="missing"):
        read_contents(zip_with(path, pickled))
    with pytest.raises(IntegrityError, match="should have 8 bytes and has 7"):
        read_contents(zip_with(path, pickled, {"0": bytes(7)}))
    raw = bytearray(zip_with(path, pickled, {"0": bytes(8)}).read_bytes())
    assert list(read_contents(path).tensors) == ["a"]
    raw[raw.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="encrypted"):
        read_contents(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_odd_names(tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("../../etc/passwd", b"x")
        z.writestr("model.safetensors", b"x")
    with pytest.raises(IntegrityError, match=r"no data\.pkl"):
        read_contents(path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", b"\x80\x02}.")
        z.writestr("x/data.pkl", b"\x80\x02}.")
    with pytest.raises(IntegrityError, match="twice"):
        read_contents(path)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(IntegrityError, match="no data"):
        read_contents(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"PK", b"PK\3\4" + bytes(100), b"\x80", b"\x80\x02.", b"GGUF" + bytes(50), bytes(1000), b"{", b"[]",
     b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"\xff" * 600, b"{}", b'{"weight_map": 3}',
     bytes(257) + b"ustar" + bytes(400), b"\x80\x02K\1.", struct.pack("<Q", 2) + b"{}x", b" " * 100 + b"{"],
)  # fmt: skip
def test_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a b.ckpt"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a b\.ckpt"):
        read_contents(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        read_contents(tmp_path / "none.ckpt")


def test_a_safetensors_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    path = tmp_path / "a.ckpt"  # the suffix says nothing
    for length in (0x0280, 0x4B50):
        path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + b"\7")
        found = read_contents(path)
        assert found.container == "safetensors"
        assert found.tensors["a"].start == 8 + length


# Size


def test_a_file_of_more_than_4_gib_opens_in_little_memory(tmp_path: Path) -> None:
    plan = write_torch_zip_plan(
        [("huge", DType.F32, (1 << 30, 1)), ("big", DType.F16, (5 << 20,)), ("last", DType.U8, (3,))]
    )
    path = tmp_path / "sparse.ckpt"
    with path.open("wb") as file:
        file.truncate(plan.file_size)
        for offset, piece in plan.pieces([0, 0, 0]):
            file.seek(offset)
            file.write(piece)
        file.seek(plan.tensors[-1].start)
        file.write(b"\1\2\3")
    tracemalloc.start()
    found = read_contents(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert [t.start for t in found.tensors.values()] == [t.start for t in plan.tensors]
    assert found.tensors["last"].start > 1 << 32
    loaded = torch_loaded(path, mmap=True)["state_dict"]
    assert loaded["last"].tolist() == [1, 2, 3]
    assert loaded["huge"].shape == (1 << 30, 1)


@pytest.mark.slow
def test_tens_of_thousands_of_tensors(tmp_path: Path) -> None:
    count = 70_000  # more than the narrow fields of a zip file can count
    plan = write_torch_zip_plan([(f"block.{i}.weight", DType.F16, (2, 1)) for i in range(count)])
    path = tmp_path / "many.ckpt"
    with path.open("wb") as file:
        file.truncate(plan.file_size)
        for offset, piece in plan.pieces([0] * count):
            file.seek(offset)
            file.write(piece)
    assert len(read_contents(path).tensors) == count
    assert len(torch_loaded(path, mmap=True)["state_dict"]) == count


def test_legacy_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no tensors"):
        read_contents(legacy_with(tmp_path / "m.pt", b"\x80\x02}."))

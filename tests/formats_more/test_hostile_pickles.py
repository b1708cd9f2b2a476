"""Pickles that mean to run something, or to exhaust something. A canary, proved alive first, must never sing."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle  # noqa: TID251  # to write the hostile files, and once to show that they bite
import random
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import legacy_with, zip_with

from mergeflow.errors import IntegrityError, MergeflowError
from mergeflow.formats.contents import read_contents

Wrap = Callable[[Path, bytes], Path]


def plain(path: Path, pickled: bytes) -> Path:
    path.write_bytes(pickled if pickled[:1] == b"\x80" else b"\x80\x02" + pickled)
    return path


every_way = pytest.mark.parametrize("wrap", [zip_with, legacy_with, plain])


class Reduce:
    def __init__(self, function: object, *args: object) -> None:
        self.what = function, args

    def __reduce__(self) -> tuple:
        return self.what


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


CANARY = "mergeflow_canary"
COMMAND = f"import os; os.environ['{CANARY}'] = 'sings'"


def corpus() -> dict[str, bytes]:
    """Each would set an environment variable if it were run, or reach for something that could."""
    reduced = {
        "exec": Reduce(exec, COMMAND),
        "eval": Reduce(eval, f"__import__('os').environ.__setitem__('{CANARY}', 'sings')"),
        "nested": {"state_dict": {"a": [Reduce(exec, COMMAND)]}},
        "in a key": {Reduce(exec, COMMAND): 1},
        "putenv": Reduce(os.putenv, CANARY, "sings"),
        "system": Reduce(os.system, "exit 3"),
        "partial": Reduce(functools.partial, exec, COMMAND),
        "getattr": Reduce(getattr, "x", "__class__"),
        "import": Reduce(__import__, "antigravity"),
        "map": Reduce(list, Reduce(map, exec, [COMMAND])),
        "open": Reduce(open, "/dev/null"),
        "torch.load": Reduce(torch.load, "/dev/null"),  # noqa: TID251
        "storage from bytes": Reduce(torch.storage._load_from_bytes, b"x"),
        "module": torch.nn.Linear(1, 1),
        "nested pickle": Reduce(pickle.loads, pickle.dumps(Reduce(exec, COMMAND))),
        "module attribute": Reduce(type, "X", (), {}),
    }
    found = {f"{name}, protocol {p}": pickle.dumps(o, p) for name, o in reduced.items() for p in range(6)}
    names = {
        "os system": "", "posix system": "", "nt system": "", "subprocess Popen": "", "builtins eval": "",
        "__builtin__ eval": "", "builtins getattr": "", "functools partial": "", "numpy load": "", "torch.hub load": "",
        "torch load": "",
        "types CodeType": "", "types FunctionType": "", "marshal loads": "", "operator methodcaller": "",
        "pytorch_lightning.callbacks os.system": "", "pytorch_lightning.utilities run": "", "this s": "",
        "pytorch_lightning/../os System": "", "collections OrderedDict.__init__": "", "torch._utils os": "",
        "torch.serialization load": "", "codecs encode": "", "_codecs decode": "", "copyreg __newobj__": "",
        "numpy.core.multiarray fromfile": "", "webbrowser open": "", "antigravity X": "", "sys modules": "",
        "torch._utils _import_dotted_name": "", "torchvision.x Y": "", "__main__ X": "", "importlib import_module": "",
    }  # fmt: skip
    for full in names:
        module, name = full.split(" ", 1)
        pair = f"{module}\n{name}\n".encode()
        arg = text("exit 3")
        found |= {
            f"GLOBAL {full}": b"c" + pair + b"(" + arg + b"tR.",
            f"GLOBAL alone {full}": b"c" + pair + b".",
            f"INST {full}": b"(" + arg + b"i" + pair + b".",
            f"OBJ {full}": b"(c" + pair + arg + b"o.",
            f"NEWOBJ {full}": b"c" + pair + b"(" + arg + b"t\x81.",
            f"NEWOBJ_EX {full}": b"c" + pair + b"(" + arg + b"t}\x92.",
            f"STACK_GLOBAL {full}": text(module) + text(name) + b"\x93" + arg + b"\x85R.",
            f"short STACK_GLOBAL {full}": b"\x8c" + bytes([len(module)]) + module.encode() + text(name) + b"\x93.",
            f"BUILD {full}": b"}(" + text("a") + b"c" + pair + b"u}b.",
            f"protocol 0 {full}": b"(dp0\nS'a'\np1\nc" + pair + b"p2\n(S'x'\ntp3\nRp4\ns.",
        }
    odd = {
        "EXT1": b"\x82\1.",
        "EXT2": b"\x83\1\0.",
        "EXT4": b"\x84\1\0\0\0.",
        "PERSID": b"P0\n.",
        "NEXT_BUFFER": b"\x97.",
        "call of a text": text("os.system") + text("exit 3") + b"\x85R.",
        "call of a dtype": b"ctorch\nfloat32\n)R.",
        "call of a tuple": b")" + b")R.",
        "call of a dict": b"})R.",
        "call of a placeholder's instance": b"cpytorch_lightning.x\nY\n)R)R.",
        "state of a text": text("x") + b"}b.",
        "state of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}b.",
        "state of a class": b"cpytorch_lightning.x\nY\n}b.",
        "state of a number": b"K\1}b.",
        "reconstructor": b"ccopy_reg\n_reconstructor\n(ccollections\nCounter\nctorch\nSize\nNtR.",
        "names to a function": b"ccollections\nOrderedDict\n)}(" + text("a") + b"K\1u\x92.",
        "from type of another function": b"ctorch._tensor\n_rebuild_from_type_v2\n(c_codecs\nencode\nctorch\nTensor\n"
        b"(" + text("x") + text("latin1") + b"t}tR.",
        "from type of itself": b"ctorch._tensor\n_rebuild_from_type_v2\nq\0(h\0ctorch\nTensor\n(NNN(tt}tR.",
        "encode as rot13": b"c_codecs\nencode\n(" + text("x") + text("rot13") + b"tR.",
        "numpy object scalar": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(" + text("O8") + b"K\0K\1tRC\1xtR.",
        "storage of a placeholder": b"(" + text("storage") + b"cpytorch_lightning.x\nY\n" + text("0") + b"NK\1tQ.",
        "module container": b"(" + text("module") + b"cpytorch_lightning.x\nY\nNNtQ.",
        "number as persistent id": b"K\1Q.",
    }
    return found | odd


CORPUS = corpus()
WATCHED = {"exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.putenv", "pickle.find_class", "import",
           "subprocess.Popen"}  # fmt: skip


def test_the_canary_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("exec, protocol 0", "nested, protocol 4", "nested pickle, protocol 2", "eval, protocol 5"):
        monkeypatch.delenv(CANARY, raising=False)
        pickle.loads(CORPUS[name])
        assert os.environ.pop(CANARY) == "sings"


@every_way
def test_nothing_hostile_is_run(tmp_path: Path, wrap: Wrap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CANARY, raising=False)
    watched: list[str] = []
    armed = [True]

    def watch(event: str, args: tuple) -> None:
        if armed and event in WATCHED:
            watched.append(f"{event} {args}")

    path = tmp_path / "m.ckpt"
    for codec in ("raw-unicode-escape", "latin-1", "ascii", "utf-8"):
        "x".encode(codec)  # which Python imports at first use
    sys.addaudithook(watch)
    try:
        for name, pickled in CORPUS.items():
            watched.clear()
            with pytest.raises(IntegrityError) as caught:
                read_contents(wrap(path, pickled))
            assert str(path) in str(caught.value), name
            assert not watched, (name, watched)
    finally:
        armed.clear()
    assert CANARY not in os.environ
    assert not {"antigravity", "this", "webbrowser"} & set(sys.modules)


def test_the_message_names_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    system = rf"m\.ckpt: its pickle asks for {os.system.__module__}\.system; .*nothing was executed"
    for protocol in range(6):
        with pytest.raises(IntegrityError, match=system):
            read_contents(zip_with(path, CORPUS[f"system, protocol {protocol}"]))
    for full in ("GLOBAL", "INST", "OBJ", "STACK_GLOBAL"):
        with pytest.raises(IntegrityError, match=r"asks for posix\.system"):
            read_contents(legacy_with(path, CORPUS[f"{full} posix system"]))
    with pytest.raises(IntegrityError) as caught:
        read_contents(zip_with(path, text("a\x1b[31m\n") + text("x" * 10_000) + b"\x93."))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 800


GOES_DEEP = 100_000
TENSOR_ARGS = b"K\0K\2\x85K\1\x85\x89NtR"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\2tQ"
V2 = b"ctorch._utils\n_rebuild_tensor_v2\n("
V3 = b"ctorch._utils\n_rebuild_tensor_v3\n("


@pytest.mark.parametrize(
    "pickled",
    [
        b"]" * GOES_DEEP + b"a" * (GOES_DEEP - 1) + b".",
        b"(" * GOES_DEEP + b"t" * GOES_DEEP + b".",
        b"(" * GOES_DEEP + b".",
        b"K\0" + b"\x85" * GOES_DEEP + b".",
        # billions of laughs: as a value, as keys, as names, as arguments
        b"]q\0" + b"0(h\0h\0lq\0" * 100 + b".",
        b")q\0" + b"0h\0h\0\x86q\0" * 100 + b"q\x010}h\1Nsh\1h\1s.",
        b"\x8f(" + b")q\0" + b"0h\0h\0\x86q\0" * 100 + b"\x90.",
        b")q\0" + b"0h\0h\0\x86q\0" * 100 + b"q\x010(h\1\x91.",
        b")q\0" + b"0h\0h\0\x86q\0" * 100 + b"h\0\x93.",
        b")q\0" + b"0h\0h\0\x86q\0" * 100 + b"Q.",
        b"}q\0" + text("state_dict") + b"h\0s.",
        b"}q\0" + text("a") + b"h\0sh\0b.",
        # claims of size
        b"X\xff\xff\xff\xffabc.",
        b"\x8d" + b"\xff" * 8 + b"abc.",
        b"\x8e" + struct.pack("<Q", 1 << 40) + b".",
        b"\x96" + struct.pack("<Q", 1 << 62) + b".",
        b"T\xff\xff\xff\xffabc.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\xff.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 5000 + b"L\n.",
        b"F" + b"1" * 500 + b"\n.",
        b"Fnan(x)\n.",
        b"p99999999999999999999\n.",
        b"K\1p-1\n.",
        b"K\1r\xff\xff\xff\xff0.",
        b"g7\n.", b"h\1.", b"j\1\0\0\0.",
        b"\x95" + b"\xff" * 8 + b".",
        b"\x80\x06.", b"\x80\xff.",
        b"V" + b"x" * 1_000_000, b"c" + b"x" * 1_000_000, b"S'abc\n.", b"S'\\q'\n.", b"S'\\x1'\n.", b"S'\\'\n.",
        # stacks that are not there
        b".", b"0.", b"1.", b"2.", b"t.", b"l.", b"d.", b"a.", b"e.", b"s.", b"u.", b"\x85.", b"\x87.", b"R.", b"b.",
        b"o.", b"(o.", b"\x93.", b"Q.", b"\x81.", b"\x92.", b"\x90.", b"K\1a.", b"K\1K\1e.", b"](K\1u.", b"}(K\1u.",
        b"K\1K\2.", b"(K\1.", b"((K\1u.", b"K\1K\2K\3s.",
        # tensors that cannot be
        V2 + b"NK\0K\2\x85K\1\x85\x89NtR.",
        V2 + STORAGE + b"J\xff\xff\xff\xffK\2\x85K\1\x85\x89NtR.",
        V2 + STORAGE + b"K\0" + text("ab") + b"K\1\x85\x89NtR.",
        V2 + STORAGE + b"K\0K\2\x85)\x89NtR.",
        V2 + STORAGE + b"K\0G" + bytes(8) + b"\x85K\1\x85\x89NtR.",
        V2 + STORAGE + b"K\0(" + b"K\1" * 100 + b"t(" + b"K\1" * 100 + b"t\x89NtR.",
        V2 + STORAGE + b"K\0\x8a\x09" + b"\xff" * 8 + b"\0\x85K\1\x85\x89NtR.",
        V2 + b"(" + text("storage") + b"ctorch.storage\nUntypedStorage\n" + text("0") + b"NK\2tQ" + TENSOR_ARGS + b".",
        V2 + b"tR.",
        V3 + STORAGE + TENSOR_ARGS + b".",
        V3 + STORAGE + b"K\0K\2\x85K\1\x85\x89N" + text("float32") + b"tR.",
        b"ctorch._utils\n_rebuild_parameter\n(K\1\x89NtR.",
        b"}" + text("a") + V2 + STORAGE + b"K\0K\3\x85K\1\x85\x89NtRs.",
        b"}" + text("a") + V2 + STORAGE + b"K\1K\2\x85K\1\x85\x89NtRs.",
        b"}X\3\0\0\0\xed\xa0\x80" + V2 + STORAGE + TENSOR_ARGS + b"s.",
        b"ccollections\nOrderedDict\n(]K\1atR.",
        b"ccollections\nOrderedDict\n(](]]tatR.",
        b"ctorch\nSize\n(K\1tR.",
        b"cnumpy\ndtype\n(K\1tR.",
        b"cnumpy.core.multiarray\nscalar\n(NNtR.",
    ],
)  # fmt: skip
@every_way
def test_bombs_and_nonsense(tmp_path: Path, wrap: Wrap, pickled: bytes) -> None:
    path = wrap(tmp_path / "m.ckpt", pickled)
    with pytest.raises(IntegrityError):
        read_contents(path)


def many(n: int, each: Callable[[int], bytes]) -> bytes:
    return b"".join(each(i) for i in range(n))


def key(i: int) -> bytes:
    return b"J" + struct.pack("<i", i)


REPEATED = {
    # one list, or one text, copied again and again
    "pairs": b"ccollections\nOrderedDict\nq\0(]q\1(" + b"K\0K\1\x86" * 20_000 + b"e0"
    + b"h\0h\1\x85R0" * 50_000 + b"t.",
    "bytes": b"c_codecs\nencode\nq\0" + text("latin1") + b"q\x01" + text("x" * 500_000) + b"q\2"
    + b"h\0h\2h\1\x86R0" * 50_000 + b".",
    # a hypernetwork of twenty thousand sizes, all the same layers
    "hypernetwork": b"}q\0(" + many(300, lambda i: text(str(i)) + V2 + STORAGE + TENSOR_ARGS) + b"u0h\0h\0\x86q\x010}("
    + many(20_000, lambda i: key(i) + b"h\1") + b"u.",
    # twenty thousand references to one large mapping without tensors
    "mappings": b"}q\0(" + many(20_000, lambda i: key(i) + b"N") + b"u0}("
    + many(20_000, lambda i: text(str(i)) + b"h\0") + b"u.",
    # whole numbers of one hash
    "hashes": b"}("
    + many(20_000, lambda i: b"\x8a\x14" + (((1 << 61) - 1) * (i + (1 << 90))).to_bytes(20, "little") + b"N") + b"u.",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [("pairs", "far more work"), ("bytes", "far more work"),
     pytest.param("hypernetwork", "500,000 tensors", marks=pytest.mark.slow),
     ("mappings", "no tensors"), ("hashes", "no tensors")],
)  # fmt: skip
def test_work_that_is_repeated(tmp_path: Path, name: str, reason: str) -> None:
    path = zip_with(tmp_path / "m.ckpt", REPEATED[name], {"0": bytes(8)})
    with pytest.raises(IntegrityError, match=reason):
        read_contents(path)


@pytest.mark.parametrize(("offset", "n", "reason"), [(0, 3, "bytes 0 to 12"), (1, 2, "bytes 4 to 12"), (9, 0, "")])
def test_a_tensor_that_reaches_out_of_its_storage(tmp_path: Path, offset: int, n: int, reason: str) -> None:
    view = bytes([75, offset, 75, n]) + b"\x85K\1\x85\x89NtR"
    pickled = b"}" + text("a") + V2 + STORAGE + view + b"s."
    path = zip_with(tmp_path / "m.ckpt", pickled, {"0": bytes(80)})
    if reason:
        with pytest.raises(IntegrityError, match=reason):
            read_contents(path)
    else:
        assert read_contents(path).tensors["a"].nbytes == 0


def test_more_opcodes_than_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergeflow.formats.pickles.OPCODE_LIMIT", 1000)
    with pytest.raises(IntegrityError, match="far larger"):
        read_contents(zip_with(tmp_path / "m.ckpt", b"}0" * 1000 + b"}."))


def test_a_sparse_file_of_nothing_takes_no_memory(tmp_path: Path) -> None:
    for start in (b"\x80\x02(", b"\x80\x02V", b"\x80\x02X\xff\xff\xff\x7f"):
        path = tmp_path / "m.ckpt"
        with path.open("wb") as file:
            file.write(start)
            file.truncate(1 << 31)
        tracemalloc.start()
        with pytest.raises(IntegrityError):
            read_contents(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 500_000_000


# Any bytes at all


def valid_pickle() -> bytes:
    buffer = io.BytesIO()
    what = {"state_dict": {"a": torch.ones(2), "b": torch.nn.Parameter(torch.zeros(2)), "c": torch.ones(3).half()}}
    torch.save(what | {"global_step": 1, "list": [1, 2.5, None, (1,)]}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


VALID = valid_pickle()
OPCODES = bytes(sorted({*b"(012NIJKLMFGSTUVXBC)tla]e}dsucRiobQPpqrghj.", *range(0x80, 0x99)}))


def only_our_errors(path: Path) -> None:
    with contextlib.suppress(MergeflowError):
        read_contents(path)


@given(st.lists(st.sampled_from(OPCODES) | st.integers(0, 255), max_size=60))
@settings(max_examples=400)
def test_random_opcodes(tmp_path: Path, opcodes: list[int]) -> None:
    only_our_errors(zip_with(tmp_path / "m.ckpt", bytes(opcodes) + b"."))


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300)
def test_a_damaged_legacy_file(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    raw = bytearray(VALID)
    for at, value in edits:
        raw[at] = value
    path = tmp_path / "m.ckpt"
    path.write_bytes(raw)
    only_our_errors(path)


def test_a_zip_file_damaged_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    torch.save({"a": torch.ones(2), "b": 1}, path)
    raw, rng = path.read_bytes(), random.Random(5)
    for at in range(len(raw)):
        for value in (0xFF, rng.randrange(256)):
            path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
            only_our_errors(path)

"""Headers: every rule of the format, and what other things a file called .safetensors can turn out to be."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file
from support.checkpoints import SIZES, header_bytes, numbers, write

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.events import silent
from mergeflow.formats.files import ReadFile
from mergeflow.formats.header import HEADER_LIMIT, Header, parse_header, read_header
from mergeflow.formats.layout import lay_out
from mergeflow.sources.identify import identify
from mergeflow.sources.memo import Memo
from mergeflow.tensors import DType


def header_of(path: Path) -> Header:
    with ReadFile(path) as file:
        return read_header(file)


def raw(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    return path


def entry(dtype: object = "F32", shape: object = (1,), begin: object = 0, end: object = 4) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def test_a_valid_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.safetensors",
        {
            "b": numbers("F16", [1, 2]),
            "a": numbers("I64", [[3], [4]]),
            "e": numbers("F32", []),
            "s": numbers("F64", 1.5),
        },
        {"format": "pt", "猫": "値"},
    )
    h = header_of(path)
    assert list(h.tensors) == ["b", "a", "e", "s"]
    assert h.metadata == {"format": "pt", "猫": "値"}
    assert [(t.dtype.code, t.shape, t.start - h.data_start) for t in h.tensors.values()] == [
        ("F16", (2,), 0), ("I64", (2, 1), 4), ("F32", (0,), 20), ("F64", (), 20),
    ]  # fmt: skip
    assert h.file_size == path.stat().st_size


@pytest.mark.parametrize("code", SIZES)
def test_every_dtype_of_the_format_is_known(tmp_path: Path, code: str) -> None:
    path = raw(tmp_path, header_bytes({"w": entry(code, (3,), 0, 3 * SIZES[code])}) + bytes(3 * SIZES[code]))
    (t,) = header_of(path).tensors.values()
    assert (t.dtype.code, t.nbytes) == (code, 3 * SIZES[code])


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "only 0 bytes long"),
    "short": (b"\1\2\3", "only 3 bytes long"),
    "no json": (header_bytes(b"{]") + bytes(9), "not valid JSON"),
    "no text": (header_bytes(b"\xff\xfe\xfa"), "not valid JSON"),
    "a list": (header_bytes([1, 2]), "not a JSON object"),
    "null": (header_bytes(b"null"), "not a JSON object"),
    "nested": (header_bytes(b"[" * 200_000), "not valid JSON"),
    "cut in the header": (header_bytes({"w": entry()})[:-9], "cut short: the header alone needs"),
    "cut in the data": (header_bytes({"w": entry()}) + bytes(3), "cut short: its tensors need"),
    "more data": (header_bytes({"w": entry()}) + bytes(5), "1 bytes follow the last tensor"),
    "a terabyte": (struct.pack("<Q", 1 << 40) + bytes(100), "its header would be 1,099,511,627,776 bytes"),
    "over the limit": (struct.pack("<Q", HEADER_LIMIT + 1) + bytes(100), "its header would be 100,000,001 bytes"),
    "negative": (struct.pack("<q", -1) + bytes(100), "its header would be"),
    "twice": (header_bytes(b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2)) + bytes(4), "names 'w' twice"),
    "overlap": (header_bytes({"a": entry(), "b": entry(begin=2, end=6)}) + bytes(6), "'b' overlaps the tensor before"),
    "same place": (header_bytes({"a": entry(), "b": entry()}) + bytes(4), "overlaps the tensor before"),
    "hole": (header_bytes({"a": entry(), "b": entry(begin=6, end=10)}) + bytes(10), "'b' leaves a hole before it"),
    "late": (header_bytes({"a": entry(begin=1, end=5)}) + bytes(5), "'a' leaves a hole before it"),
    "backwards": (header_bytes({"a": entry(begin=4, end=0)}) + bytes(4), "should take 4 bytes"),
    "too little": (header_bytes({"a": entry(end=3)}) + bytes(3), "should take 4 bytes"),
    "negative shape": (header_bytes({"a": entry(shape=(-1,))}) + bytes(4), "not a whole number"),
    "fraction": (header_bytes({"a": entry(shape=(1.0,))}) + bytes(4), "not a whole number"),
    "a boolean": (header_bytes({"a": entry(shape=(True,))}) + bytes(4), "not a whole number"),
    "a text": (header_bytes({"a": entry(begin="0")}) + bytes(4), "not a whole number"),
    "huge": (header_bytes({"a": entry(shape=(1 << 62, 1 << 62))}) + bytes(4), "should take"),
    "huge offset": (header_bytes({"a": entry(begin=1 << 62, end=(1 << 62) + 4)}) + bytes(4), "leaves a hole"),
    "more than a size": (header_bytes({"a": entry(begin=1 << 80, end=(1 << 80) + 4)}) + bytes(4), "not a whole number"),
    "empty and huge": (header_bytes({"a": entry(shape=(1 << 63, 3, 0), end=0)}), "more bytes than any file has"),
    "many dimensions": (header_bytes({"a": entry(shape=(10**19,) * 100_000)}) + bytes(4), "more bytes than any"),
    "half a character": (header_bytes(b'{"\\ud800":%s}' % json.dumps(entry()).encode()) + bytes(4), "not valid JSON"),
    "half in metadata": (header_bytes(b'{"__metadata__":{"a":"\\uDFFF"}}'), "not valid JSON"),
    "half in bytes": (header_bytes(b'{"\xed\xa0\x80":%s}' % json.dumps(entry()).encode()) + bytes(4), "not valid JSON"),
    "UTF-16": (header_bytes(json.dumps({"a": entry()}).encode("utf-16-le")) + bytes(4), "not valid JSON"),
    "NaN": (header_bytes(b'{"a":{"x":NaN,%s' % json.dumps(entry()).encode()[1:] + b"}") + bytes(4), "not valid JSON"),
    "unknown dtype": (header_bytes({"a": entry("F13")}) + bytes(4), "the type 'F13'"),
    "no dtype": (header_bytes({"a": entry(None)}) + bytes(4), "the type None"),
    "no offsets": (header_bytes({"a": {"dtype": "F32", "shape": [1]}}) + bytes(4), "entry for 'a' is malformed"),
    "three offsets": (header_bytes({"a": {**entry(), "data_offsets": [0, 4, 4]}}) + bytes(4), "is malformed"),
    "a number": (header_bytes({"a": 3}), "is malformed"),
    "a shape that is a text": (header_bytes({"a": entry(shape="1")}) + bytes(4), "not a whole number"),
    "metadata of numbers": (header_bytes({"__metadata__": {"a": 1}}), "must map text to text"),
    "metadata list": (header_bytes({"__metadata__": [1]}), "must map text to text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_integrity_errors_that_say_why(tmp_path: Path, name: str) -> None:
    data, message = BROKEN[name]
    path = raw(tmp_path, data)
    with pytest.raises(IntegrityError) as caught:
        header_of(path)
    assert message in str(caught.value)
    assert caught.value.exit_code == 5
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    if name != "twice":  # the library takes the last of two
        with pytest.raises((SafetensorError, OSError, ValueError)):
            load_file(path)


def test_a_real_header_beyond_the_limit(tmp_path: Path) -> None:
    """As long as it says it is, and still refused without being read."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", HEADER_LIMIT + 1))
        file.truncate(HEADER_LIMIT + 100)
    with ReadFile(path) as file_read, pytest.raises(IntegrityError, match="its header would be 100,000,001"):
        read_header(file_read)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/readme.txt", "not a checkpoint")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped(), ""),
        (b"PK\x03\x04" + bytes(500), ""),
        (b"\x80\x02}q\x00." + bytes(500), ""),
        (b"GGUF\x03\0\0\0" + bytes(500), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>rate limited</html>", "web page"),
        (b"<html><body>not found</body></html>", "web page"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = raw(tmp_path, data)
    with pytest.raises(IntegrityError, match=message or None):
        identify(path, Memo(tmp_path / "memo", lambda m: None), silent)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_garbage_is_never_anything_but_an_integrity_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = raw(tmp_path_factory.mktemp("garbage"), data)
    with pytest.raises(IntegrityError):
        header_of(path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(list(SIZES)), JSON),
        "shape": st.one_of(st.lists(st.integers(-1, 3), max_size=3), JSON),
        "data_offsets": st.one_of(st.tuples(st.integers(-2, 20), st.integers(-2, 20)), JSON),
    },
)


@settings(max_examples=250)
@given(st.dictionaries(st.text(max_size=5), st.one_of(ENTRIES, JSON), max_size=4), st.integers(0, 40))
def test_what_we_accept_the_library_accepts(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object], size: int
) -> None:
    """Whatever JSON a header holds: an integrity error or a header, and then one whose tensors fill the file."""
    data = header_bytes(document) + bytes(size)
    path = raw(tmp_path_factory.mktemp("fuzz"), data)
    try:
        found = header_of(path)
    except IntegrityError:
        return
    assert sum(t.nbytes for t in found.tensors.values()) == size
    from mergeflow.formats.header import check_with_library

    check_with_library(path)


@settings(max_examples=300)
@given(st.data())
def test_one_flipped_byte_is_an_error_or_another_valid_header(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    model = header_bytes({"__metadata__": {"k": "v"}, "w": entry(shape=(2,), end=8), "v": entry("U8", (2,), 8, 10)})
    whole = bytearray(model + bytes(10))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    path = raw(tmp_path_factory.mktemp("flip"), bytes(whole))
    try:
        found = header_of(path)
    except IntegrityError:
        return
    assert found.data_start + sum(t.nbytes for t in found.tensors.values()) == len(whole)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        ReadFile(tmp_path / "nothing")
    with pytest.raises(MissingInput, match="a folder"):
        ReadFile(tmp_path)


# -- our own layout ------------------------------------------------------------------------------------------------

TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__"),
    st.tuples(st.sampled_from(list(DType)), st.lists(st.integers(0, 5), max_size=4).map(tuple)),
    max_size=12,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=200)
@given(TENSORS, st.dictionaries(TEXTS, TEXTS, max_size=4), st.randoms())
def test_what_we_lay_out_reads_back(
    tensors: dict[str, tuple[DType, tuple[int, ...]]], metadata: dict[str, str], random: object
) -> None:
    items = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    layout = lay_out(items, metadata)
    random.shuffle(items)  # type: ignore[attr-defined]
    assert lay_out(items, dict(reversed(metadata.items()))) == layout
    assert len(layout.header) % 4096 == 0
    found = parse_header(layout.header[8:], Path("x"), layout.file_size)
    assert tuple(found.tensors.values()) == tuple(sorted(layout.tensors, key=lambda t: (t.start, t.nbytes)))
    assert found.metadata == metadata
    assert found.data_start == len(layout.header)


@settings(max_examples=60)
@given(TENSORS, st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_the_library_reads_what_we_lay_out(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[DType, tuple[int, ...]]],
    metadata: dict[str, str],
) -> None:
    from safetensors import safe_open

    layout = lay_out([(name, dtype, shape) for name, (dtype, shape) in tensors.items()], metadata)
    path = raw(tmp_path_factory.mktemp("layout"), layout.header + bytes(layout.file_size - len(layout.header)))
    with safe_open(str(path), framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert (file.metadata() or {}) == metadata
        for name, (_, shape) in tensors.items():
            assert tuple(file.get_slice(name).get_shape()) == shape
    path.unlink()  # its metadata may happen to be what an output says of itself


def test_metadata_can_be_exchanged_for_as_long_a_text() -> None:
    layout = lay_out([("w", DType.F32, (3,))], {"digest": "0" * 64, "format": "pt"})
    other = layout.header_with({"format": "pt", "digest": "f" * 64})
    assert len(other) == len(layout.header)
    assert parse_header(other[8:], Path("x"), layout.file_size).metadata["digest"] == "f" * 64
    with pytest.raises(ValueError, match="changes the header's length"):
        layout.header_with({"digest": "0" * 10_000, "format": "pt"})

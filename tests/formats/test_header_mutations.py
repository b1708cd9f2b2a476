"""Headers that were changed in one place or two: what is accepted, the safetensors library accepts too, and reads the
same of it; all else is an IntegrityError."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from mergeflow.errors import IntegrityError
from mergeflow.formats.contents import read_contents

# As they stand in the JSON of a header. (Of -0, which is 0 to us, the library makes a fraction, and refuses it.)
VALUES = ["NaN", "-Infinity", "1e999", "4.0", "true", "null", '"4"', "[]", "{}", "-1", "0", "1", "2", "[4]",
          '"F16"', str(2**63), str(2**64 - 1), str(2**64), str(2**128), "9" * 5000,
          '"\\ud800"', '"\\ud83d\\ude00"']  # fmt: skip
NAMES = [
    "t0",
    "\\ud800",
    "\\udfff\\ud800",
    "\\ud83d\\ude00",
    "\\u0000",
    "__metadata__",
    "猫",
    "",
    "\\u001b[31m",
    "\ud800",
]
ENCODINGS: list[Callable[[str], bytes]] = [
    lambda text: text.encode("utf-16-le", "surrogatepass"),
    lambda text: text.encode("utf-32-le", "surrogatepass"),
    lambda text: b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass"),
    lambda text: text.encode("latin-1", "replace"),
    *[lambda text: text.encode("utf-8", "surrogatepass")] * 30,
]


def changed(rng: random.Random) -> bytes:
    """A small file, its header changed in up to two places."""
    entries, data = [], b""
    for i in range(rng.randint(1, 3)):
        code, size = rng.choice([("F32", 4), ("F16", 2), ("U8", 1), ("I64", 8)])
        shape = [rng.choice([0, 1, 2, 3]) for _ in range(rng.randint(0, 3))]
        values = rng.randbytes(size * _product(shape))
        places = [str(len(data)), str(len(data) + len(values))]
        entries.append([f"t{i}", {"dtype": f'"{code}"', "shape": [str(n) for n in shape], "data_offsets": places}])
        data += values
    for _ in range(rng.randint(0, 2)):
        entry = rng.choice(entries)
        fields = entry[1]
        match rng.randint(0, 6):
            case 0:
                entry[0] = rng.choice(NAMES)
            case 1:
                fields["dtype"] = rng.choice(VALUES)
            case 2:
                fields["data_offsets"][rng.randint(0, 1)] = rng.choice(VALUES)
            case 3:
                fields["shape"].insert(rng.randint(0, len(fields["shape"])), rng.choice(VALUES))
            case 4:
                fields["more"] = rng.choice(VALUES)
            case 5:
                entries.append(["__metadata__", {rng.choice(NAMES): rng.choice(VALUES)}])
                break
            case 6:
                rng.shuffle(entries)
    raw = rng.choice(ENCODINGS)("{" + ",".join(f'"{name}":{_text(fields)}' for name, fields in entries) + "}")
    return struct.pack("<Q", len(raw)) + raw + data


def _product(shape: list[int]) -> int:
    result = 1
    for n in shape:
        result *= n
    return result


def _text(value: object) -> str:
    match value:
        case dict():
            return "{" + ",".join(f'"{k}":{_text(v)}' for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_text, value)) + "]"
        case _:
            return str(value)


def library(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    try:
        with safe_open(str(path), framework="numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return {name: (part.get_dtype(), part.get_shape()) for name, part in found.items()}
    except (SafetensorError, OSError):
        return None


@pytest.mark.parametrize("seed", range(2))
def test_what_is_accepted_is_what_the_library_reads(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "x.safetensors"
    accepted = 0
    for _ in range(250):
        path.write_bytes(changed(rng))
        try:
            found = read_contents(path).tensors
        except IntegrityError as error:
            str(error).encode()
            continue
        accepted += 1
        wanted = library(path)
        assert wanted is not None, path.read_bytes()
        assert {name: (t.dtype.code, list(t.shape)) for name, t in found.items()} == wanted
        json.dumps(list(found), ensure_ascii=False).encode()
    assert 40 < accepted < 210, "both kinds are to be seen"

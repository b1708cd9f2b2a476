# ruff: noqa: E501  # tables: a case is easier to read on one line
"""Source files that are not what they should be, and outputs that cannot be written where they should go."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from broken_case import HEAD, Case, Change, Content, head, mix, small
from support.checkpoints import Model, header_bytes

SOURCE = "mergeflow: 1\nsources: {{ a: a.safetensors, b: {{ path: b.safetensors, {claim} }} }}\n"
OUTPUT = "outputs: { mix.safetensors: a*0.5 + b*0.5 }\n"


def _gone(folder: Path) -> None:
    (folder / "b.safetensors").unlink()


def _instead(make: Change) -> Change:
    """b.safetensors replaced by something else."""

    def change(folder: Path) -> None:
        _gone(folder)
        make(folder / "b.safetensors")

    return change


def claim(name: str, text: str, code: int = 5) -> Case:
    return Case(name, code, SOURCE.format(claim=text) + OUTPUT)


MISSING = [
    mix("source-missing", "a*0.5 + b*0.5", code=4, change=_gone),
    Case("source-missing-in-folder", 4, "mergeflow: 1\nsources: { a: models/sd/a.safetensors }\noutputs: { mix.safetensors: a }\n"),
    Case("source-missing-like-another", 4, "mergeflow: 1\nsources: { a: nai-pruned.safetensors }\noutputs: { mix.safetensors: a }\n",
         {"nai-prunned.safetensors": b""}),
    mix("source-is-a-folder", "a*0.5 + b*0.5", code=4, change=_instead(Path.mkdir)),
    mix("source-is-a-dead-link", "a*0.5 + b*0.5", code=4, change=_instead(lambda p: p.symlink_to("elsewhere"))),
    mix("source-is-a-loop-of-links", "a*0.5 + b*0.5", code=4, change=_instead(lambda p: p.symlink_to(p.name))),
    mix("source-is-a-pipe", "a*0.5 + b*0.5", code=4, change=_instead(lambda p: os.mkfifo(p))),
    mix("source-is-a-device", "a*0.5 + b*0.5", code=4, change=_instead(lambda p: p.symlink_to("/dev/zero"))),
    Case("source-below-a-file", 4, "mergeflow: 1\nsources: { a: a.safetensors/b.safetensors }\noutputs: { mix.safetensors: a }\n"),
    Case("source-name-too-long", 4, f"mergeflow: 1\nsources: {{ a: {'y' * 300}.safetensors }}\noutputs: {{ mix.safetensors: a }}\n"),
]  # fmt: skip

HASHES = [
    claim("hash-sha256-wrong", "sha256: " + "89d59c3dde4c56c6d5c41da34cc55ce479d93b4007046980934b14db71bdb2a8"),
    claim("hash-10-digits-wrong", "hash: 925997e921"),
    claim("hash-8-digits-wrong", "hash: 925997e9"),
    claim("hash-autov3-wrong", "hash: 89d59c3dde4c"),
    claim("hash-size-wrong", "size: 2132856622"),
    claim("hash-size-not-a-number", "size: 2 GB", 2),
]

# -- what is not a safetensors file --------------------------------------------------------------------------------


def content(name: str, data: Content, code: int = 5) -> Case:
    """b.safetensors with this content."""
    return mix(f"content-{name}", "a*0.5 + b*0.5", code=code, files={"b.safetensors": data})


def entries(name: str, document: Any, data: bytes = b"", code: int = 5) -> Case:
    """A header of these entries, written as JSON, then the data."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return content(name, header_bytes(text) + data, code)


def tensor(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


GOOD = header_bytes({"v": tensor(0, 8), "w": tensor(8, 16)}) + bytes(16)
PAIR = b'{"v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "v": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}'
ENTRY = b'{"v": {"dtype": "F32", "shape": [1], "shape": [2], "data_offsets": [0, 8]}}'

CONTENTS = [
    content("empty", b""),
    content("seven-bytes", b"abcdefg"),
    content("zeros", bytes(1000)),
    content("garbage", hashlib.shake_256(b"garbage").digest(5000)),
    content("text", "This is not the model you are looking for.\n"),
    content("web-page", "<!DOCTYPE html>\n<html><body>404</body></html>\n"),
    content("web-page-indented", "\n\n  <html><body>Sign in to download</body></html>\n"),
    content("json-error", '{"error": "Unauthorized", "message": "You need to be logged in"}'),
    content("lfs-pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265380512\n"),
    content("gguf", b"GGUF\3\0\0\0" + bytes(100)),
    content("zip", b"PK\3\4" + bytes(100)),
    content("pickle", b"\x80\x02}q\x00." + bytes(100)),
    content("truncated-header", GOOD[:40]),
    content("truncated-data", GOOD[:-5]),
    content("truncated-to-the-header", GOOD[:-16]),
    content("bytes-after-the-end", GOOD + b"\0" * 7),
    content("header-over-100-mb", struct.pack("<Q", 100_000_001) + b"{}"),
    content("header-of-2-to-the-63", struct.pack("<Q", 1 << 63) + b"{}"),
    content("header-of-no-bytes", struct.pack("<Q", 0)),
]

ENTRIES = [
    entries("header-not-json", b'{"v": '),
    entries("header-not-utf8", b'{"v\xff": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    entries("header-a-list", ["v"]),
    entries("header-a-number", 7),
    entries("header-nested", b"[" * 200_000),
    entries("name-twice", PAIR, bytes(8)),
    entries("key-twice-in-entry", ENTRY, bytes(8)),
    entries("metadata-not-text", {"__metadata__": {"step": 3}, "v": tensor(0, 8)}, bytes(8)),
    entries("metadata-a-list", {"__metadata__": ["x"], "v": tensor(0, 8)}, bytes(8)),
    entries("entry-null", {"v": None}),
    entries("entry-without-offsets", {"v": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    entries("entry-with-one-offset", {"v": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, bytes(8)),
    entries("type-unknown", {"v": tensor(0, 8, dtype="F33")}, bytes(8)),
    entries("type-a-number", {"v": tensor(0, 8, dtype=32)}, bytes(8)),
    entries("shape-negative", {"v": tensor(0, 8, (-2,))}, bytes(8)),
    entries("shape-fraction", {"v": tensor(0, 8, (2.0,))}, bytes(8)),
    entries("shape-text", {"v": tensor(0, 8, "2")}, bytes(8)),
    entries("shape-true", {"v": tensor(0, 4, (True,))}, bytes(4)),
    entries("shape-too-large", {"v": tensor(0, 8, (1 << 40, 1 << 40))}, bytes(8)),
    entries("shape-of-many-digits", {"v": tensor(0, 8, (10**3000, 10**3000))}, bytes(8)),
    entries("shape-of-many-numbers", {"v": tensor(0, 8, (1,) * 3000)}, bytes(8)),
    entries("offset-negative", {"v": tensor(-8, 0)}, bytes(8)),
    entries("offset-fraction", {"v": tensor(0.0, 8.0)}, bytes(8)),
    entries("offset-text", {"v": tensor("0", "8")}, bytes(8)),
    entries("offsets-reversed", {"v": tensor(8, 0)}, bytes(8)),
    entries("offsets-too-short", {"v": tensor(0, 4)}, bytes(4)),
    entries("offsets-overlap", {"v": tensor(0, 8), "w": tensor(4, 12)}, bytes(12)),
    entries("offsets-the-same", {"v": tensor(0, 8), "w": tensor(0, 8)}, bytes(8)),
    entries("offsets-leave-a-hole", {"v": tensor(0, 8), "w": tensor(12, 20)}, bytes(20)),
    entries("offsets-begin-late", {"v": tensor(4, 12)}, bytes(12)),
    entries("offsets-out-of-range", {"v": tensor(0, 8), "w": tensor(8, 16)}, bytes(12)),
    entries("offsets-far-out-of-range", {"v": tensor(0, 1 << 62, (1 << 60,))}, bytes(8)),
    entries("long-name", {"n" * 100_000: tensor(0, 4)}, bytes(4)),
    entries("name-with-escapes", {"v\x1b[31m\nw": tensor(0, 4)}, bytes(4)),
    entries("no-tensors", {}, code=2),
]  # fmt: skip

# -- outputs -------------------------------------------------------------------------------------------------------


def output(name: str, path: str, code: int = 2, **rest: Any) -> Case:
    return head(f"output-{name}", f"outputs: {{ {path}: a*0.5 + b*0.5 }}\n", code=code, **rest)


def _link_out(folder: Path) -> None:
    outside = folder / "outside"
    outside.mkdir()
    (folder / "work").mkdir()
    (folder / "work" / "out").symlink_to("../outside")


def _both(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "two").symlink_to("one")


STRANGER: Model = small(9)

OUTPUTS = [
    output("is-an-input", "a.safetensors"),
    output("is-an-input-by-another-path", "x/../b.safetensors"),
    output("is-an-input-by-a-link", "link/b.safetensors", change=lambda f: (f / "link").symlink_to(".")),
    output("is-an-unused-source", "c.safetensors", command="build --force recipe.yaml"),
    output("is-a-link-to-an-input", "to.safetensors", change=lambda f: (f / "to.safetensors").symlink_to("a.safetensors")),
    output("above-the-root", "../mix.safetensors"),
    output("absolute", "/tmp/mergeflow-must-not-write-here.safetensors"),
    output("absolute-on-windows", "'C:\\models\\mix.safetensors'"),
    output("through-a-link-out", "out/mix.safetensors", command="build recipe.yaml --output-root work", change=_link_out),
    output("is-a-link-out", "mix2.safetensors", command="build recipe.yaml --output-root work",
           change=lambda f: (_link_out(f), (f / "work" / "mix2.safetensors").symlink_to("../outside/x.safetensors"))),
    output("is-a-folder", "out.safetensors", 7, change=lambda f: (f / "out.safetensors").mkdir()),
    output("below-a-file", "a.safetensors/mix.safetensors", 7),
    output("not-ours", "other.safetensors", files={"other.safetensors": STRANGER}),
    output("not-ours-and-no-model", "other.safetensors", files={"other.safetensors": "notes"}),
    output("not-a-model", "mix.gguf"),
    output("without-suffix", "mix"),
    output("name-too-long", "n" * 300 + ".safetensors"),
    output("a-folder-of-shards", "mix/"),
    output("with-braces", "'mix-{m}.safetensors'"),
    head("output-twice", "outputs: { mix.safetensors: a, mix.safetensors: b }\n"),
    head("output-twice-in-other-letters", "outputs: { mix.safetensors: a, MIX.safetensors: b }\n"),
    head("output-twice-by-dots", "outputs: { mix.safetensors: a, x/.././mix.safetensors: b, }\n"),
    head("output-twice-by-a-dot", "outputs: { mix.safetensors: a, ./mix.safetensors: b, }\n"),
    head("output-twice-by-a-link", "outputs: { one/mix.safetensors: a, two/mix.safetensors: b }\n", change=_both),
    head("outputs-one-below-the-other", "outputs: { x.safetensors: a, x.safetensors/y.safetensors: b }\n"),
    head("shards-of-a-ckpt", "outputs: { mix.ckpt: { from: a, shard_size: 5GB } }\n"),
    head("shards-too-small", "outputs: { mix.safetensors: { from: a, shard_size: 10KB } }\n"),
    head("shards-of-no-size", "outputs: { mix.safetensors: { from: a, shard_size: half } }\n"),
    head("shard-not-ours", "outputs: { x.safetensors: { from: a, shard_size: 1MB } }\n", files={"x-00001-of-00001.safetensors": STRANGER}),
    head("config-missing", "outputs: { x.safetensors: { from: a, sidecars: config } }\n", code=4),
    head("config-that-is-a-recipe", "outputs: { x.safetensors: { from: a, sidecars: config } }\n", code=5, files={"a.yaml": HEAD}),
    head("config-over-the-recipe", "outputs: { recipe.safetensors: { from: a, sidecars: config } }\n", files={"a.yaml": "model: {}\n"}),
    head("sidecar-not-ours", "outputs: { x.safetensors: { from: a, sidecars: sha256 } }\n", files={"x.safetensors.sha256": "notes"}),
    head("modelspec-of-what", "outputs: { x.safetensors: { from: a, metadata_for: modelspec } }\n"),
    head("output-root-is-a-file", "outputs: { x.safetensors: a*0.5 + b*0.5 }\n", command="build recipe.yaml --output-root a.safetensors"),
    head("cache-is-a-file", "outputs: { x.safetensors: a*0.5 + b*0.5 }\n", command="build recipe.yaml --cache a.safetensors"),
]  # fmt: skip

CASES = [*MISSING, *HASHES, *CONTENTS, *ENTRIES, *OUTPUTS]

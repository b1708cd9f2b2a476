"""Digests and facts, against the definition written out again."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import SIZES, Model, Tensor, any_bits
from support.exact import FORMATS, doubles

from mergeflow.formats.blocks import BLOCK, blocks
from mergeflow.formats.layout import lay_out
from mergeflow.formats.scan import SAMPLE, Scan, count_nonfinite
from mergeflow.tensors import DType

MIB = 1 << 20


def digests(model: Model) -> tuple[bytes, list[bytes]]:
    """As mergeflow/digest.py defines them: chunks of a MiB, payload, tensor, model."""
    labels = {d.code: d.label for d in DType}
    each = {}
    for name, t in model.items():
        chunks = b"".join(blake3(t.data[i : i + MIB]).digest() for i in range(0, len(t.data), MIB))
        payload = blake3(b"mergeflow payload 1\n" + chunks).digest()
        shape = ",".join(str(n) for n in t.shape)
        each[name] = blake3(f"mergeflow tensor 1\n{labels[t.code]}\n{shape}\n".encode() + payload).digest()
    whole = b"mergeflow model 1\n"
    for name in sorted(each):
        whole += struct.pack("<I", len(name.encode())) + name.encode() + each[name]
    return blake3(whole).digest(), list(each.values())


def scanned(model: Model, order: np.random.Generator | None = None, limit: int = BLOCK):  # type: ignore[no-untyped-def]
    layout = lay_out([(n, next(d for d in DType if d.code == t.code), t.shape) for n, t in model.items()], {})
    specs = layout.tensors
    data = bytearray(layout.file_size)
    for s in specs:
        data[s.start : s.start + s.nbytes] = model[s.name].data
    scan = Scan(specs, samples=True)
    todo = list(blocks(specs, limit))
    if order is not None:
        order.shuffle(todo)  # type: ignore[arg-type]
    lost = 0
    for b in todo:
        lost += scan.add(np.frombuffer(data, np.uint8)[b.offset : b.offset + b.nbytes], b)
    return {s.name: model[s.name] for s in specs}, scan.finish(), lost


CODES = list(SIZES)
models = st.builds(
    lambda seed, items: {
        f"t{i}": any_bits(np.random.default_rng(seed + i), code, shape, finite=finite)
        for i, (code, shape, finite) in enumerate(items)
    },
    st.integers(0, 1 << 32),
    st.lists(
        st.tuples(
            st.sampled_from(CODES),
            st.sampled_from([(), (0,), (1,), (2, 3), (100,), (15,), (16,), (17,), (MIB // 4,), (MIB + 1,), (3 * MIB,)]),
            st.booleans(),
        ),
        max_size=6,
    ),
)


def check(model: Model, content, lost: int) -> None:  # type: ignore[no-untyped-def]
    whole, each = digests(model)
    assert content.model == whole
    assert list(content.digests) == each
    bad = 0
    for i, t in enumerate(model.values()):
        if t.code not in FORMATS:
            assert (content.nonfinite[i], np.isnan(content.low[i])) == (0, True)
            continue
        f = FORMATS[t.code]
        x = doubles(f, t.data)
        finite = x[np.isfinite(x)]
        assert content.nonfinite[i] == len(x) - len(finite)
        bad += len(x) - len(finite)
        if len(finite):
            assert (content.low[i], content.high[i]) == (finite.min(), finite.max())
        else:
            assert np.isnan(content.low[i])
            assert np.isnan(content.high[i])
        if len(x):
            with np.errstate(all="ignore"):
                picked = x[np.arange(SAMPLE) * len(x) // SAMPLE].astype(np.float32)
            picked[~np.isfinite(picked)] = found_nonfinite(content.samples[i])[~np.isfinite(picked)]
            assert (np.nan_to_num(content.samples[i], nan=7) == np.nan_to_num(picked, nan=7)).all()
    assert lost == bad


def found_nonfinite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), np.nan, x)


@settings(max_examples=60)
@given(models, st.integers(0, 1000), st.sampled_from([BLOCK, MIB, 5 * MIB]))
def test_any_order_of_blocks_gives_what_the_definition_says(model: Model, seed: int, limit: int) -> None:
    check(*scanned(model, np.random.default_rng(seed), limit))


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("pick", ["positive", "negative", "zeros", "nan", "infinite", "one negative", "one positive"])
def test_ranges_of_one_sign_and_of_none(code: str, pick: str) -> None:
    f = FORMATS[code]
    rng = np.random.default_rng(1)
    bits = np.frombuffer(any_bits(rng, code, (300,)).data, f.unsigned).copy()
    sign = f.unsigned(1 << (8 * f.size - 1))
    top = f.unsigned(((1 << f.exponent) - 1) << f.mantissa)
    nan = top | f.unsigned((1 << f.mantissa) - 1)
    chosen = {
        "positive": bits & ~sign, "negative": bits | sign, "zeros": bits & sign, "nan": np.full(300, nan),
        "infinite": np.full(300, nan if f.finite else top) | (bits & sign),
        "one negative": bits & ~sign, "one positive": bits | sign,
    }[pick]  # fmt: skip
    if pick.startswith("one"):
        chosen[77] ^= sign
    t = Tensor(code, (300,), chosen.astype(f.unsigned).tobytes())
    check(*scanned({"a": t, "b": any_bits(rng, code, (5,), finite=False)}))


@pytest.mark.parametrize("code", FORMATS)
def test_counting_what_is_not_finite(code: str) -> None:
    t = any_bits(np.random.default_rng(2), code, (5000,), finite=False)
    dtype = next(d for d in DType if d.code == code)
    x = doubles(FORMATS[code], t.data)
    assert count_nonfinite(np.frombuffer(t.data, np.uint8), dtype) == np.count_nonzero(~np.isfinite(x)) > 0


def test_digests_tell_everything_apart_that_matters() -> None:
    base = {"w": Tensor("F16", (4, 3), bytes(range(24))), "e": Tensor("F32", (0,), b"")}
    variants: list[Model] = [
        base,
        {**base, "w": base["w"]._replace(shape=(3, 4))},
        {**base, "w": base["w"]._replace(shape=(12,))},
        {**base, "w": base["w"]._replace(code="BF16")},
        {**base, "w": base["w"]._replace(data=bytes(24))},
        {"v": base["w"], "e": base["e"]},
        {"w": base["w"]},
        {**base, "e": Tensor("F32", (0, 3), b"")},
        {**base, "e": Tensor("F16", (0,), b"")},
    ]
    found = [scanned(v)[1].model for v in variants]
    assert len(set(found)) == len(found)
    assert scanned(dict(reversed(base.items())))[1].model == found[0]

"""All methods at once: every dtype and size, models that are equal, opposite or zero, and values that are no numbers.

One build makes an output of each call in catalogue.py; the models' tensors are the cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from catalogue import CALLS, CASES, COPIES, MOVED, At, Case
from method_cases import doubles
from support.builds import build, write_models
from support.checkpoints import Model, Tensor, numbers, read, related, weights
from support.exact import FORMATS

from mergeflow.methods.registry import built_in

FILES = ("base", "a", "b", "c", "fa", "fb")
SHAPES: dict[str, tuple[int, ...]] = {
    "none": (0,),
    "one": (),
    "two": (2,),
    "99": (99,),
    "100": (10, 10),
    "conv": (4, 3, 3, 3),
}
FEW = ("none", "one", "100")  # sizes that only float32 and float16 have
ZERO, X = np.zeros((2, 3)), np.array([[1.0, -2, 0], [3, -1, 0]])
TRIPLES = [(ZERO, ZERO, ZERO), (X, ZERO, ZERO), (ZERO, X, ZERO), (X, X, ZERO), (X, -X, ZERO), (X, X, X), (X, ZERO, X),
           (ZERO, X, X), (-X, X, -X)]  # fmt: skip
ODD = [("F32", "nan", "a"), ("F32", "inf", "a"), ("F32", "nan", "base"), ("F32", "inf", "base"), ("F16", "nan", "a"),
       ("F16", "inf", "a"), ("BF16", "nan", "a"), ("F64", "inf", "a"), ("F8_E4M3", "nan", "a")]  # fmt: skip
AT = 7  # where a value is no number
NAN_BITS = {"F32": 0xFFC0_1234, "F16": 0xFE34, "BF16": 0xFFC1, "F8_E4M3": 0xFF}
CANONICAL = {"F64": 0x7FF8_0000_0000_0000, "F32": 0x7FC0_0000, "F16": 0x7E00, "BF16": 0x7FC0, "F8_E4M3": 0x7F}


class Made(NamedTuple):
    models: Mapping[str, Model]
    results: Mapping[str, Model]  # by call


def models() -> dict[str, Model]:
    """Tensors are called by what they are for: `shape`, `equal`, `degenerate`, `odd` (one value is no number)."""
    rng = np.random.default_rng(21)
    found: dict[str, Model] = {name: {} for name in FILES}
    for code in FORMATS:
        for name, shape in SHAPES.items():
            if name in FEW and code not in ("F32", "F16"):
                continue
            add(found, f"shape {code} {name}", rng, weights(rng, code, shape))
        same = weights(rng, code, (5, 4))
        for name in FILES:
            found[name][f"equal {code}"] = same
    for code, what, where in ODD:
        key = f"odd {code} {what} in {where}"
        add(found, key, rng, weights(rng, code, (6, 5)))
        found[where][key] = spoilt(found[where][key], what)
    for code in ("F16", "F32"):
        for k, (a, b, base) in enumerate(TRIPLES):
            values = {"base": base, "a": a, "b": b, "c": a, "fa": np.abs(a), "fb": ZERO}
            for name in FILES:
                found[name][f"degenerate {code} {k}"] = numbers(code, values[name])
    for name in ("out.0.bias", "out.2.bias"):  # what `adjust` is about
        add(found, f"model.diffusion_model.{name}", rng, weights(rng, "F16", (4,)))
    return found


def add(found: dict[str, Model], key: str, rng: np.random.Generator, base: Tensor) -> None:
    step = 0.5 if FORMATS[base.code].size == 1 else 0.01
    found["base"][key] = base
    for name in "abc":
        found[name][key] = related(rng, base, step)
    for name in ("fa", "fb"):  # squares, as information is
        found[name][key] = numbers("F32", doubles(related(rng, base, step)) ** 2)


def spoilt(t: Tensor, what: str) -> Tensor:
    f = FORMATS[t.code]
    bits = np.frombuffer(t.data, f.unsigned).copy()
    bits[AT] = NAN_BITS[t.code] if what == "nan" else ((1 << f.exponent) - 1) << f.mantissa
    return Tensor(t.code, t.shape, bits.tobytes())


def tensors(made: Made, *kinds: str) -> Iterator[tuple[str, At]]:
    for name, t in made.models["base"].items():
        if name.startswith(kinds) and t.elements:
            yield name, At(*(doubles(made.models[x][name]) for x in FILES), name)


def off(case: Case, found: Tensor, wanted: np.ndarray, at: At) -> np.ndarray:
    """Which values are further from the formula's than the result's dtype rounds once."""
    f, got = FORMATS[found.code], doubles(found)
    unit = np.maximum(np.abs(wanted), 2.0 ** float(f.lowest + f.mantissa)) * 2.0**-f.mantissa
    computed = 2.0**-24 if f.size < 4 or case.single else 2.0**-50  # of the oracle, too
    size = max(np.abs(x).max() for x in (at.base, at.a, at.b, at.c))
    return ~(np.abs(got - wanted) <= case.steps * unit + case.slack * computed * size)


def not_the_formula(made: Made, case: Case) -> Iterator[str]:
    for name, at in tensors(made, "shape", "equal", "degenerate", "model."):
        found, wanted = made.results[case.call][name], case.wanted(at)
        assert found.shape == wanted.shape
        far = off(case, found, wanted, at)
        if case.unsure is not None:
            far &= ~case.unsure(at)
        if far.any():
            yield f"{case.call} of {name}: {doubles(found)[far][:3]} and not {wanted[far][:3]}"


def no_numbers(made: Made, call: str) -> Iterator[str]:
    """Of numbers come numbers. One value that is none stays at its place, or is gone; it never spreads, and a NaN is
    always the same NaN."""
    for name, t in made.results[call].items():
        values = doubles(t).ravel()
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size > name.startswith("odd"):
            yield f"{call} of {name}: {bad.size} values that are no numbers"
        elif bad.size and bad[0] != AT and not call.startswith(MOVED):
            yield f"{call} of {name}: what is no number has moved to {bad[0]}"
        bits = np.frombuffer(t.data, FORMATS[t.code].unsigned)[np.isnan(values)].tolist()
        if bits not in ([], [CANONICAL.get(t.code)]) and not call.startswith(COPIES):
            yield f"{call} of {name}: the NaN {bits[0]:#x}"


def test_every_method_is_here() -> None:
    assert sorted(CASES) == sorted(built_in())
    assert all(name in case.call for name, cases in CASES.items() for case in cases)


def test_every_method_on_everything(tmp_path: Path) -> None:
    """In the dtype that the models have, which is rounded to once. One test, so that all is built once."""
    given = models()
    write_models(tmp_path, given)
    outputs = "".join(f"  {i}.safetensors: '{call}'\n" for i, call in enumerate(CALLS))
    sources = ", ".join(f"{name}: {name}.safetensors" for name in FILES)
    build(tmp_path, f"mergeflow: 1\nsources: {{ {sources} }}\noptions: {{ nonfinite: allow }}\noutputs:\n{outputs}")
    made = Made(given, {call: read(tmp_path / f"{i}.safetensors") for i, call in enumerate(CALLS)})
    shapes = {name: t.shape for name, t in given["base"].items()}
    assert all({name: t.shape for name, t in found.items()} == shapes for found in made.results.values())
    wrong = [line for cases in CASES.values() for case in cases for line in not_the_formula(made, case)]
    wrong += [line for call in CALLS for line in no_numbers(made, call)]
    assert not wrong, f"{len(wrong)} of them:\n" + "\n".join(wrong[:20])

"""mergekit's arithmetic, operation by operation, against fractions that are rounded where it rounds. That it is
mergekit's is shown by `tests/peers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support.builds import build, write_models
from support.checkpoints import Model, Tensor, read, related, weights
from support.exact import F32, FORMATS, unbounded, values

from mergeflow.errors import RecipeError

CODES = ("F32", "F16", "BF16")
WEIGHTS = ("0.3", "0.55", "-0.2")
Numbers = list[Fraction]


class Oracle:
    """Operations on lists of numbers, each rounded to the format."""

    def __init__(self, code: str) -> None:
        self.f = FORMATS[code]

    def to(self, x: Fraction) -> Fraction:
        return unbounded(self.f, x)

    def single(self, x: str | Fraction) -> Fraction:
        """What a Python float is as float32."""
        return unbounded(F32, Fraction(float(Fraction(x))))

    def weights(self) -> Numbers:
        return [self.to(self.single(w)) for w in WEIGHTS]

    def total(self, parts: Sequence[Fraction]) -> Fraction:
        """In float32, one after the other, rounded once."""
        found = Fraction(0)
        for x in parts:
            found = unbounded(F32, found + x)
        return self.to(found)

    def each(self, rule: Callable[..., Fraction], *operands: Numbers) -> Numbers:
        return [rule(*x) for x in zip(*operands, strict=True)]

    def difference(self, x: Numbers, y: Numbers) -> Numbers:
        return self.each(lambda a, b: self.to(a - b), x, y)

    def parts(self, deltas: tuple[Fraction, ...]) -> Numbers:
        return [self.to(x * w) for x, w in zip(deltas, self.weights(), strict=True)]

    def scaled(self, x: Fraction) -> Fraction:
        return self.to(unbounded(F32, x * self.single("0.9")))

    # -- the methods ---------------------------------------------------------------------------------------------

    def sum(self, *deltas: Fraction) -> Fraction:
        return self.scaled(self.total(self.parts(deltas)))

    def mean(self, *deltas: Fraction) -> Fraction:
        over = self.total(self.weights())
        return self.scaled(self.to(self.total(self.parts(deltas)) / over))

    def elect(self, *deltas: Fraction) -> Fraction:
        parts, weights = self.parts(deltas), self.weights()
        sign = 1 if self.total(parts) >= 0 else -1
        agree = [x * sign > 0 for x in parts]
        over = self.total([w * yes for w, yes in zip(weights, agree, strict=True)])
        mixed = self.total([x * yes for x, yes in zip(parts, agree, strict=True)])
        return self.scaled(self.to(mixed / (over or 1)))

    def linear(self, *models: Fraction) -> Fraction:
        found, weights = Fraction(0), [self.single(w) for w in WEIGHTS]
        for x, w in zip(models, weights, strict=True):
            found = unbounded(F32, found + x * w)
        over = Fraction(0)
        for w in weights:
            over = unbounded(F32, over + w)
        return self.to(unbounded(F32, found / over))

    def nearswap(self, a: Fraction, b: Fraction) -> Fraction:
        distance = max(self.to(abs(a - b)), self.to(self.single("1e-6")))
        share = min(Fraction(1), self.to(unbounded(F32, self.to(1 / distance) * self.single("0.01"))))
        return self.to(self.to(share * b) + self.to(self.to(1 - share) * a))

    def ram(self, *deltas: Fraction, more: Sequence[Fraction] = ()) -> Fraction:
        least = self.to(self.single("0.005"))
        active = [abs(x) > least for x in deltas]
        count = sum(active)
        factors = more or [Fraction(1)] * len(deltas)
        parts = [
            self.to(x / count) if count > 1 else unbounded(F32, x * factor)
            for x, factor, yes in zip(deltas, factors, active, strict=True)
            if yes
        ]
        found = Fraction(0)
        for x in parts:
            found = unbounded(F32, found + x)
        return found if more else self.to(found)

    def lone(self, deltas: Sequence[Numbers]) -> Numbers:
        """What each difference is multiplied with where it is alone."""
        least = self.to(self.single("0.005"))
        active = [[abs(x) > least for x in delta] for delta in deltas]
        count = [sum(column) for column in zip(*active, strict=True)]
        factors = []
        for rows in active:
            shared = sum(yes and n > 1 for yes, n in zip(rows, count, strict=True))
            alone = sum(yes and n == 1 for yes, n in zip(rows, count, strict=True))
            ratio = unbounded(F32, Fraction(shared) / max(Fraction(alone), self.single("0.005")))
            product = unbounded(F32, self.single("0.3") * min(ratio, self.single("0.9")))
            factors.append(unbounded(F32, 1 + product))
        return factors


def numbers(t: Tensor) -> Numbers:
    found = values(FORMATS[t.code], t.data)
    assert None not in found
    return [x for x in found if x is not None]


DELTAS = "[da @ 0.3, db @ 0.55, dc @ -0.2]"
CALLS = {
    "sum": f"o + mergekit_sum({DELTAS}, dtype=DTYPE, scale=0.9)",
    "mean": f"o + mergekit_mean({DELTAS}, dtype=DTYPE, scale=0.9)",
    "elect": f"o + mergekit_elect({DELTAS}, dtype=DTYPE, scale=0.9)",
    "linear": "mergekit_linear([a @ 0.3, b @ 0.55, c @ -0.2], dtype=DTYPE)",
    "nearswap": "mergekit_nearswap(o, a, 0.01, dtype=DTYPE)",
    "ram": "o + mergekit_ram([da, db, dc], dtype=DTYPE, epsilon=0.005)",
    "ram_plus": "o + mergekit_ram_plus([da, db, dc], dtype=DTYPE, epsilon=0.005, r=0.3, most=0.9)",
}


KEPT = {  # of 100 values: the ranks of those kept, the largest being 1; 0.29 · 100 is 28.999999999999996 in floats
    "0.28": (1, 28), "0.29": (1, 28), "0.001": (1, 1), "0": (1, 0), "1": (1, 100),
    "0.29, gamma=0.1": (11, 38), "0.5, gamma=0.8": (51, 100), "1, gamma=0.5": (1, 100), "0.001, gamma=0.1": (1, 0),
}  # fmt: skip


class Made(NamedTuple):
    models: dict[str, Model]
    results: dict[str, Model]
    halves: dict[str, Model]


@pytest.fixture(scope="module", params=CODES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Each call in the models' dtype, and in float16: then it is computed with in float32 and not in float64."""
    folder, code = tmp_path_factory.mktemp("mergekit"), request.param
    rng = np.random.default_rng(3)
    base: Model = {"x": weights(rng, code, (5, 9)), "one": weights(rng, code, ()), "same": weights(rng, code, (3,))}
    models = {"o": base}
    for name in "abc":
        models[name] = {key: t if key == "same" else related(rng, t, 0.01) for key, t in base.items()}
    write_models(folder, models)
    label = FORMATS[code].label
    text = ["mergeflow: 1", "sources:", *(f"  {x}: {x}.safetensors" for x in "oabc"), "steps:"]
    text += [f"  d{x}: {{ expr: {x} - o, round: {label} }}" for x in "abc"]
    text += ["outputs:"]
    for name, call in CALLS.items():
        text.append(f"  {name}.safetensors: '{call.replace('DTYPE', label)}'")
        text.append(f"  {name}-half.safetensors: {{ from: '{call.replace('DTYPE', label)}', dtype: float16 }}")
    build(folder, "\n".join([*text, ""]))
    results, halves = ({name: read(folder / f"{name}{end}.safetensors") for name in CALLS} for end in ("", "-half"))
    return Made(models, results, halves)


@pytest.mark.parametrize("name", CALLS)
def test_each_operation_is_rounded(made: Made, name: str) -> None:
    code = made.models["o"]["x"].code
    oracle, half = Oracle(code), FORMATS["F16"]
    for tensor in made.models["o"]:
        o, a, b, c = (numbers(made.models[x][tensor]) for x in "oabc")
        deltas = [oracle.difference(x, o) for x in (a, b, c)]
        if name == "linear":
            wanted = oracle.each(oracle.linear, a, b, c)
        elif name == "nearswap":
            wanted = oracle.each(oracle.nearswap, o, a)
        else:
            factors = oracle.lone(deltas) if name == "ram_plus" else ()
            rule = (lambda *d, k=factors: oracle.ram(*d, more=k)) if name.startswith("ram") else getattr(oracle, name)
            wanted = oracle.each(lambda x, d: x + d, o, oracle.each(rule, *deltas))
        assert numbers(made.results[name][tensor]) == [oracle.to(x) for x in wanted], tensor
        assert numbers(made.halves[name][tensor]) == [unbounded(half, unbounded(F32, x)) for x in wanted], tensor


def test_a_product_is_added_in_one_rounding(tmp_path: Path) -> None:
    """1 + 2⁻²³ and a little less than 2⁻²⁴: in float64 that is the middle of two float32, which it is not."""
    x, y, w = 1 + Fraction(1, 1 << 23), Fraction((1 << 23) + 1, 1 << 47), 1 - Fraction(1, 1 << 23)
    write_models(
        tmp_path, {name: {"x": Tensor("F32", (1,), np.float32(float(v)).tobytes())} for name, v in (("a", x), ("b", y))}
    )
    linear = "mergekit_linear([a, b @ 0.99999988079071044921875], dtype=float32, normalize=false)"
    text = (
        f"mergeflow: 1\nsources: {{ a: a.safetensors, b: b.safetensors }}\noutputs: {{ mix.safetensors: '{linear}' }}\n"
    )
    build(tmp_path, text)
    assert numbers(read(tmp_path / "mix.safetensors")["x"]) == [unbounded(F32, x + y * w)] == [x]
    assert unbounded(F32, unbounded(FORMATS["F64"], x + y * w)) != x


@pytest.mark.parametrize("name", ["linear", "elect"])
def test_long_tensors_are_their_parts(tmp_path: Path, name: str) -> None:
    """Work is done on 8,192 values at a time: nothing shows where one piece ends."""
    rng = np.random.default_rng(4)
    for model in "oabc":
        whole = weights(rng, "F16", (9000,))
        parts = {
            "x": whole,
            "y": Tensor("F16", (5000,), whole.data[:10000]),
            "z": Tensor("F16", (4000,), whole.data[10000:]),
        }
        write_models(tmp_path, {model: parts})
    steps = "".join(f"  d{x}: {{ expr: {x} - o, round: float16 }}\n" for x in "abc")
    sources = "sources: { o: o.safetensors, a: a.safetensors, b: b.safetensors, c: c.safetensors }"
    call = CALLS[name].replace("DTYPE", "float16")
    build(tmp_path, f"mergeflow: 1\n{sources}\nsteps:\n{steps}outputs:\n  mix.safetensors: '{call}'\n")
    found = read(tmp_path / "mix.safetensors")
    assert found["x"].data == found["y"].data + found["z"].data


def test_counts_are_those_of_floats(tmp_path: Path) -> None:
    """Of n values int(density · n) are kept, and of the larger ones int(gamma · n) left out, if so many remain."""
    a = Tensor("F32", (100,), np.arange(100, 0, -1, dtype=np.float32).tobytes())
    write_models(tmp_path, {"o": {"x": Tensor("F32", (100,), bytes(400))}, "a": {"x": a}})
    text = "mergeflow: 1\nsources: { a: a.safetensors, o: o.safetensors }\noutputs:\n"
    for i, settings in enumerate(KEPT):
        text += f"  {i}.safetensors: 'mergekit_trim(a - o, {settings})'\n"
    build(tmp_path, text)
    for i, (first, last) in enumerate(KEPT.values()):
        found = numbers(read(tmp_path / f"{i}.safetensors")["x"])
        assert [rank for rank, x in enumerate(found, 1) if x] == list(range(first, last + 1))


@pytest.mark.parametrize(
    "call", ["mergekit_ram([(a - o) @ 2], dtype=float32)", "mergekit_ram_plus([(a - o) @ 2], dtype=float16)"]
)
def test_where_weights_mean_nothing(tmp_path: Path, call: str) -> None:
    write_models(tmp_path, {x: {"x": weights(np.random.default_rng(1), "F32", (3,))} for x in "oa"})
    sources = "{ a: a.safetensors, o: o.safetensors }"
    with pytest.raises(RecipeError, match="takes no weights"):
        build(tmp_path, f"mergeflow: 1\nsources: {sources}\noutputs: {{ x.safetensors: 'o + {call}' }}\n")

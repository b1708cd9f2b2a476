"""Compiled kernels and torch's give the same bytes: every value of the small dtypes, NaN, infinities, zeros and equals,
whatever is cut where; and masks and ranks against numpy's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, build, python, sha256
from support.checkpoints import Model, Tensor, any_bits, numbers, related, weights, write
from support.masks import named_mask

from mergeflow.executor import _kernels, compiled, making, searches
from mergeflow.executor.device import KERNELS_VARIABLE
from mergeflow.executor.masks import Mask
from mergeflow.executor.packing import COUNT, DOTS, ELECT, LENGTH, LOST, SUM, TALLY, TRIM, ZERO, Packed, pack
from mergeflow.executor.stages import Stages
from mergeflow.methods import masks
from mergeflow.methods.compiled import Drop
from mergeflow.methods.kernels import GRID
from mergeflow.methods.selection import SMALL
from mergeflow.tensors import DType

EXPRESSIONS = {
    "ties": "ties(o, [a, b @ 0.3, c @ -2], density=0.2)",
    "mean": "o + sum_sign([a - o, b - o, (c - o) @ 2])*0.5",
    "sum": "o + sum_sign([a - o, (b - o) @ (1/3), c - o], normalize=false)",
    "count": "ties(o, [a, b @ 0.5, c], density=0.7, elect=count)",
    "none": "o + ties_trim(a - o, 0) + ties_trim(b - o, 1)",
    "alone": "{ from: 'ties_trim(a - b, 0.3)', dtype: float32 }",
    "inner": "o + ties_trim(dare_drop(a - o, 0.5), 0.4)*0.5",
    "rounded": "o + ties_trim(half, 0.4) + dare_drop(half, 0.25)",
    "dare": "dare(o, [a, b], density=0.3)",
    "some": "dare(o, [a, b], density=1/70000)",
    "l1": "dare(o, [a, b], density=0.3, rescale=l1)",
    "matched": "o + match_l1(ties_trim(a - o, 0.2), b - o)",
    "both": "dare_ties(o, [a, b, c], density=0.4)",
    "slerp": "slerp(a, b, 0.3)",
    "lerp": "slerp(o, b, 0.7, norm=lerp)",
    "nuslerp": "nuslerp([a @ 0.3, b @ 0.7], base=o)",
    "multi": "multislerp([a, b @ 2, c])",
    "karcher": "karcher([a, b @ 2, c], base=o)",
}
TEXT = (
    HEAD
    + """sources: { o: models/o.safetensors, a: models/a.safetensors, b: models/b.safetensors, c: models/c.safetensors }
options: { nonfinite: allow }
steps: { half: { expr: a - o, round: float16 } }
"""
)
ByTorch = Callable[[str], dict[str, str]]
CASTS = {"own": "", "f32": "float32", "bf16": "bfloat16", "f64": "float64"}


def recipe(dtype: str) -> str:
    defaults = f"defaults: {{ dtype: {dtype} }}\n" if dtype else ""
    outputs = "".join(
        f"  {name}.safetensors: {text if text[0] == '{' else repr(text)}\n" for name, text in EXPRESSIONS.items()
    )
    return f"{TEXT}{defaults}outputs:\n{outputs}"


def every(rng: np.random.Generator, code: str, *, shuffled: bool) -> Tensor:
    """All bit patterns of a dtype of one or two bytes."""
    kind = np.uint8 if code.startswith("F8") else np.uint16
    codes = np.arange(1 << 8 * kind().nbytes, dtype=kind)
    return Tensor(code, codes.shape, (rng.permutation(codes) if shuffled else codes).tobytes())


def the_models() -> dict[str, Model]:
    rng = np.random.default_rng(3)
    nan, inf = float("nan"), float("inf")
    large = weights(rng, "F16", (SMALL + 12_345,))
    other = weights(rng, "F32", (SMALL + 1,))
    double = weights(rng, "F64", (40_003,))
    models: dict[str, Model] = {}
    for i, name in enumerate("oabc"):
        model: Model = {
            code.lower(): every(rng, code, shuffled=i > 0) for code in ("F16", "BF16", "F8_E4M3", "F8_E5M2")
        }
        for code in ("F16", "BF16", "F32", "F64"):
            for shape in ((0,), (), (1,), (2,), (99,), (10, 10), (4, 3, 3, 3)):
                model[f"{code}{shape}"] = weights(rng, code, shape)
            model[f"{code} any"] = any_bits(rng, code, (2_003,), finite=False)
            values = [nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -0.5]
            if code != "BF16":
                model[f"{code} bad"] = numbers(code, rng.permutation(np.repeat(values, 9)))
            model[f"{code} equal"] = numbers(code, rng.choice([-1.0, 0.0, 0.0, 1.0], 1000))
        model["large"] = related(rng, large) if i else large
        model["other"] = related(rng, other) if i else other
        model["double"] = related(rng, double) if i else double
        sparse = np.zeros(SMALL + 99)
        sparse[rng.integers(0, sparse.size, 500)] = i
        model["sparse"] = numbers("F16", sparse)
        models[name] = model
    return models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "models"
    for name, model in the_models().items():
        write(folder / f"{name}.safetensors", model)
    return folder


def made(folder: Path, models: Path, dtype: str, **more: object) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "models").symlink_to(models)
    build(folder, recipe(dtype), **more)
    return {name: sha256(folder / f"{name}.safetensors") for name in EXPRESSIONS}


@pytest.fixture(scope="module")
def by_torch(models: Path, tmp_path_factory: pytest.TempPathFactory) -> ByTorch:
    """What torch makes with a cast, once for each that is asked for; for tests that have taken torch away, too."""
    begin = Stages.__init__

    @cache
    def make(cast: str) -> dict[str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(KERNELS_VARIABLE, "torch")
            patch.setattr(Stages, "__init__", begin)
            return made(tmp_path_factory.mktemp(cast), models, CASTS[cast], jobs=2)

    return make


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would be computed with torch fails."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a job for torch")

    monkeypatch.setattr("mergeflow.executor.stages.Stages.__init__", refuse)


@pytest.fixture(params=["with the processor's instructions", "plain"])
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    _kernels.plain(request.param == "plain")
    yield
    _kernels.plain(False)


@pytest.mark.parametrize(
    "cast", ["own", "bf16", *(pytest.param(cast, marks=pytest.mark.slow) for cast in ("f32", "f64"))]
)
@pytest.mark.usefixtures("instructions", "without_torch")
def test_the_same_bytes_as_torch(tmp_path: Path, models: Path, by_torch: ByTorch, cast: str) -> None:
    assert made(tmp_path, models, CASTS[cast]) == by_torch(cast)


@pytest.mark.slow
@pytest.mark.parametrize(("grids", "jobs"), [(1, 1), (3, 8), (16, 2)])
@pytest.mark.usefixtures("without_torch")
def test_spans_and_threads(
    tmp_path: Path, models: Path, by_torch: ByTorch, monkeypatch: pytest.MonkeyPatch, grids: int,
    jobs: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(compiled, "SPAN", grids * GRID)
    assert made(tmp_path, models, "", jobs=jobs) == by_torch("own")


@pytest.mark.slow
@pytest.mark.parametrize(("small", "collect", "spread"), [(1 << 17, 5000, 4), (1 << 17, 1 << 20, 0), (1 << 17, 0, 0.1)])
@pytest.mark.usefixtures("without_torch")
def test_brackets_that_are_too_wide_or_miss(
    tmp_path: Path, models: Path, by_torch: ByTorch, monkeypatch: pytest.MonkeyPatch, small: int,
    collect: int, spread: float,
) -> None:  # fmt: skip
    for name, value in (("SMALL", small), ("COLLECT", collect), ("_SPREAD", spread)):
        monkeypatch.setattr(searches, name, value)
    assert made(tmp_path, models, "float32") == by_torch("f32")


def test_torch_is_not_imported(tmp_path: Path, models: Path) -> None:
    (tmp_path / "models").symlink_to(models)
    code = (
        "import sys\nfrom pathlib import Path\nfrom support.builds import build\n"
        "build(Path(sys.argv[1]), sys.argv[2], jobs=2)\nassert 'torch' not in sys.modules\n"
    )
    python(code, tmp_path, recipe(""))


def test_without_the_extension_torch_does_it(
    tmp_path: Path, models: Path, by_torch: ByTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mergeflow.executor.compiled", None)
    assert making.Makers([], 0)._compiled is None
    assert made(tmp_path, models, "float32") == by_torch("f32")


@pytest.mark.parametrize("begin", [0, 1, 16, 77, (1 << 36) + 5])
@pytest.mark.parametrize("n", [0, 1, 15, 700])
@pytest.mark.parametrize("density", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 1 << 17), Fraction(65535, 65536)])
@pytest.mark.usefixtures("instructions")
def test_masks_are_those_of_the_oracle(begin: int, n: int, density: Fraction) -> None:
    name = bytes(range(3, 35))
    found = np.full(n, 9, np.uint8)
    Mask(Drop(name, density)).write(begin, found)
    assert np.array_equal(found, named_mask(name, density, n, begin))


@pytest.mark.parametrize("density", [Fraction(1, 7), Fraction(1, 1 << 14), Fraction(255, 256)])
@pytest.mark.usefixtures("instructions")
def test_masks_are_those_of_numpy(density: Fraction) -> None:
    found = np.empty(100_003, np.uint8)
    Mask(Drop(bytes(range(32)), density)).write(33, found)
    assert np.array_equal(found, masks.mask(bytes(range(32)), density, 33, found.size))
    assert abs(np.mean(found) - float(density)) < 6 * (float(density * (1 - density)) / found.size) ** 0.5


def test_a_mask_that_makes_no_sense_is_refused() -> None:
    for name, whole in ((bytes(23), 5), (bytes(32), 256), (bytes(32), -1)):
        with pytest.raises(ValueError, match="a mask takes"):
            _kernels.mask(name, whole, 0, 0, np.zeros(5, np.uint8))


X, F32 = np.zeros(40, np.uint8), DType.F32
ONE = ((1.0, 0),)


@pytest.mark.parametrize(
    ("op", "outs", "elements"),
    [(Packed(SUM, F32, F32, ONE, out=0), [44], 11), (Packed(SUM, F32, F32, ONE, out=0), [40], -1),
     (Packed(SUM, F32, F32, ONE, out=0), [36], 10), (Packed(SUM, F32, F32, ONE, out=1), [40], 10),
     (Packed(SUM, F32, F32, (), out=0), [40], 10),
     (Packed(ZERO, F32, F32, ONE, out=0), [40], 10), (Packed(TRIM, F32, DType.F16, ONE, out=0), [40], 10),
     (Packed(ELECT, F32, F32, ONE, out=0, mask=0), [40], 10), (Packed(SUM, F32, F32, ONE, out=0, mask=1), [40], 10),
     (Packed(COUNT, F32, F32, ONE), [40], 10),
     (Packed(COUNT, F32, F32, ONE, out=0, low=2, high=1), [40], 10), (Packed(COUNT, F32, F32, ONE, out=0), [8], 10),
     (Packed(TALLY, F32, F32, ONE, out=0, high=7), [56], 10), (Packed(TALLY, F32, F32, ONE, out=0, flags=-1), [56], 10),
     (Packed(DOTS, F32, F32, ONE, out=0, high=1), [72], 10),
     (Packed(LENGTH, DType.F64, F32, ONE, out=0), [8], 10),
     (Packed(DOTS, DType.F64, F32, ONE, out=0, high=2), [160], 10), (Packed(99, F32, F32, ONE, out=0), [40], 10)],
)  # fmt: skip
def test_a_program_that_does_not_fit_its_buffers_is_refused(op: Packed, outs: list[int], elements: int) -> None:
    buffers = tuple(np.zeros(n, np.uint8) for n in outs)
    with pytest.raises(ValueError, match="does not fit"):
        _kernels.run(pack([op], [F32]), (X,), buffers, elements)


def test_programs_that_make_no_sense_are_refused() -> None:
    out = np.zeros(40, np.uint8)
    packed = pack([Packed(SUM, F32, F32, ONE, out=0)], [F32])
    assert _kernels.run(packed, (X,), (out,), 10) == 0
    lost = pack([Packed(LOST, F32, F32, ONE), Packed(SUM, F32, F32, ONE, out=0)], [F32])
    elsewhere = packed[:-16] + (1).to_bytes(4, sys.byteorder) + packed[-12:]  # an operand that is not there
    for program in (b"", packed[:8], packed[:-1], lost, elsewhere):
        with pytest.raises(ValueError, match="does not fit"):
            _kernels.run(program, (X,), (out,), 10)

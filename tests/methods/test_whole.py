"""Methods over whole tensors against their formulas in numpy's float64, and the room that they are given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from support.builds import build, made, made_elsewhere, plan, recipe, write_models
from support.checkpoints import Model, numbers, read, related, weights, write
from support.exact import FORMATS
from whole_oracles import (
    cosine_mix,
    crossed,
    extract,
    fused,
    max_magnitude,
    ram_plus,
    slerped,
    smoothed,
    stocked,
    top_k,
    truncate,
)

from mergeflow.errors import RecipeError, ResourceError
from mergeflow.executor.whole import Gate
from mergeflow.methods import tiers
from mergeflow.methods.columns import arc, dots, sine
from mergeflow.plan.place import Budget, footprint, place
from mergeflow.plan.program import COPY
from mergeflow.plan.whole import largest, whole_bytes

Array = np.ndarray
ALLOW = "options: { nonfinite: allow }\n"
FILES = "abo"


# -- every dtype and shape ---------------------------------------------------------------------------------------------

Wanted = Callable[[Array, Array, Array], Array]
CASES: list[tuple[str, Wanted]] = [
    ("o + truncate_rank(a - o, 0)", lambda a, b, o: o),
    ("o + truncate_rank(a - o, 1)", lambda a, b, o: o + truncate(a - o, 1)),
    ("o + truncate_rank(a - o, 2)", lambda a, b, o: o + truncate(a - o, 2)),
    ("o + truncate_rank(a - o, 50)", lambda a, b, o: a),
    ("add_cosine_a(a, b)", lambda a, b, o: cosine_mix(a, b, 1, whole=False)),
    ("add_cosine_a(a, b, 0.3)", lambda a, b, o: cosine_mix(a, b, 0.3, whole=False)),
    ("add_cosine_a(a, b, -2)", lambda a, b, o: a),
    ("add_cosine_b(a, b, 0.2)", lambda a, b, o: cosine_mix(a, b, 0.2, whole=True)),
    ("extract(o, a, b, 0.3, 0)", lambda a, b, o: extract(o, a, b, 0.3, 0, 1)),
    ("extract(o, a, b, 0.5, 1, 2.5)", lambda a, b, o: extract(o, a, b, 0.5, 1, 2.5)),
    ("extract(o, a, b, 0, 0.4, 0)", lambda a, b, o: extract(o, a, b, 0, 0.4, 0)),
    ("smooth_add(a, b, o, 0.5)", lambda a, b, o: a + 0.5 * smoothed(b - o)),
    ("nuslerp([a, b @ 3], along=last)", lambda a, b, o: slerped(a, b, 0.75, "last")),
    ("nuslerp([a, b @ -3], along=first)", lambda a, b, o: slerped(a, b, 1.5, "first")),
    ("nuslerp([a, b], base=o, along=last)", lambda a, b, o: o + slerped(a - o, b - o, 0.5, "last")),
    ("model_stock(o, [a, b], filter_wise=true)", lambda a, b, o: stocked(o, [a, b])),
    ("ram_plus(o, [a, b], 0.5, 3, 0.004)", lambda a, b, o: ram_plus(o, [a, b], 0.5, 3, 0.004)),
    ("distribution_crossover(a, b, o, 0.3)", lambda a, b, o: crossed(a, b, o, 0.3, 0)),
    ("distribution_crossover(a, b, o, 0.5, 0.4)", lambda a, b, o: crossed(a, b, o, 0.5, 0.4)),
]


@pytest.mark.parametrize("code", FORMATS)
def test_formulas(tmp_path: Path, code: str) -> None:
    models = family(code, "ab")
    for number, found in enumerate(all_results(tmp_path, [call for call, _ in CASES], models, "float32")):
        for name, shape in SHAPES.items():
            if 0 not in shape and name != "same":
                close(found[name], CASES[number][1](*(doubles(models[x][name]) for x in FILES)), 1)
        assert found["none"].shape == (0,)
        assert found["ids"] == models["o"]["ids"]


def all_results(folder: Path, calls: Sequence[str], models: Mapping[str, Model], dtype: str) -> Iterator[Model]:
    """Of one build."""
    write_models(folder, models)
    outputs = "".join(f"  {i}.safetensors: {{ from: '{call}', dtype: {dtype} }}\n" for i, call in enumerate(calls))
    sources = ", ".join(f"{name}: {name}.safetensors" for name in models)
    build(folder, f"mergeflow: 1\nsources: {{ {sources} }}\noutputs:\n{outputs}")
    return (read(folder / f"{i}.safetensors") for i in range(len(calls)))


EXACT: list[tuple[str, Wanted]] = [
    ("top_k_tensor_sum(a, b)", lambda a, b, o: top_k(a, b, "1", "0")),
    ("top_k_tensor_sum(a, b, 0.3, 0.5)", lambda a, b, o: top_k(a, b, "0.3", "0.5")),
    ("top_k_tensor_sum(a, b, 0.7, 0.5)", lambda a, b, o: top_k(a, b, "0.7", "0.5")),
    ("top_k_tensor_sum(a, b, 0, 0.5)", lambda a, b, o: a),
    ("magmax(o, [a, b])", lambda a, b, o: o + max_magnitude(a - o, b - o)),
]


@pytest.mark.parametrize("code", FORMATS)
def test_values_that_are_moved(tmp_path: Path, code: str) -> None:
    models = family(code, "ab")
    for number, found in enumerate(all_results(tmp_path, [call for call, _ in EXACT], models, "float64")):
        for name, shape in SHAPES.items():
            if 0 not in shape:
                wanted = EXACT[number][1](*(doubles(models[x][name]) for x in FILES))
                np.testing.assert_allclose(doubles(found[name]), wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("code", FORMATS)
def test_arcee_fusion(tmp_path: Path, code: str) -> None:
    models = family(code, "a")
    found = results(tmp_path, "arcee_fusion(o, a)", models, "float64")
    kept = 0
    for name, shape in SHAPES.items():
        if 0 in shape:
            continue
        o, a, got = doubles(models["o"][name]), doubles(models["a"][name]), doubles(found[name])
        importance, chosen = fused(o, a)
        wanted = np.where(chosen, a, o)
        near = np.abs(importance - importance[chosen].min(initial=np.inf)) <= 1e-9 * importance.max()
        assert np.array_equal(got[~near], wanted[~near])
        assert ((got == a) | (got == o)).all()
        kept += int((~near).sum())
    assert kept > 100


# -- degenerate tensors ------------------------------------------------------------------------------------------------

CALLS = ["o + truncate_rank(a - o, 1)", "add_cosine_a(a, b, 0.5)", "add_cosine_b(a, b, 0.5)",
         "extract(o, a, b, 0.5, 0.5, 2)", "top_k_tensor_sum(a, b, 0.5)", "distribution_crossover(a, b, o, 0.5, 0.1)",
         "arcee_fusion(a, b)", "smooth_add(a, b, o)", "nuslerp([a, b], along=last)",
         "nuslerp([a, b], base=o, along=first)", "model_stock(o, [a, b], filter_wise=true)", "ram_plus(o, [a, b])",
         "magmax(o, [a, b])"]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_what_is_equal_in_all_stays_as_it_is(tmp_path: Path, call: str) -> None:
    models = family("F16", "ab")
    assert results(tmp_path, call, models)["same"] == models["a"]["same"]
    if not call.startswith("extract"):
        (output,) = plan(tmp_path, recipe(call, "a b o ")).outputs
        assert next(w.program for w in output.works if w.name == "same") == COPY


def test_zeros_of_other_shapes_have_other_keys(tmp_path: Path) -> None:
    """Nothing in a key of zeros but their shape says how many there are."""
    values = np.arange(20) / 8
    models: dict[str, Model] = {k: {"x": numbers("F16", values), "y": numbers("F16", values[:6])} for k in "oa"}
    write_models(tmp_path, models)
    (output,) = plan(tmp_path, recipe("extract(o, a, a, 0.5, 0.2)", "o a ")).outputs
    x, y = (set(work.values) - {""} for work in output.works)
    assert x
    assert y
    assert x.isdisjoint(y)


def test_a_difference_of_low_rank_is_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    low = rng.integers(-8, 9, (400, 2)) @ rng.integers(-8, 9, (2, 90)) / 64.0
    for x in (low, low.T, low.reshape(400, 9, 10), low * 1e-160, low * 1e150):
        models: dict[str, Model] = {"a": {"x": numbers("F64", x)}, "o": {"x": numbers("F64", 0 * x)}}
        got = doubles(results(tmp_path, "truncate_rank(a - o, 2)", models, "float64")["x"])
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12 * np.abs(x).max())


@pytest.mark.parametrize(
    ("call", "message"),
    [("truncate_rank(a - o, 1.5)", "rank is a whole number of at least 0, not 1.5"),
     ("truncate_rank(a - o, -1)", "rank is a whole number of at least 0, not -1"),
     ("extract(o, a, b, 2, 0)", "m is a number from 0 to 1, not 2"),
     ("extract(o, a, b, 1, 0, 101)", "k is a number from 0 to 100, not 101"),
     ("nuslerp([a, b], along=rows)", "along is all or last or first, not rows"),
     ("magmax(o, [a, b @ 2])", "magmax takes no weights")],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, call: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        results(tmp_path, f"o + ({call}) * 0" if "truncate" in call else call, family("F32", "ab"))


# -- series ------------------------------------------------------------------------------------------------------------


def test_sines_and_angles() -> None:
    x = np.concatenate([np.linspace(-20, 20, 4001), np.arange(-4, 5) * np.pi / 2])
    np.testing.assert_allclose(sine(x), np.sin(x), rtol=0, atol=2e-15)
    small = np.linspace(-1e-3, 1e-3, 101)
    np.testing.assert_allclose(sine(small), np.sin(small), rtol=1e-15, atol=0)
    c = np.concatenate([np.linspace(-1, 1, 2001)[1:], 1 - 10.0 ** -np.arange(1, 15), 10.0 ** -np.arange(1, 15) - 1])
    half = np.arctan2(np.sqrt(1 - c), np.sqrt(1 + c))
    np.testing.assert_allclose(arc(c), 2 * half, rtol=2e-15, atol=0)


def test_dot_products_of_columns() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(2, 9001, 300)).astype(np.float32)
    wanted = np.einsum("ij,ij->j", x.astype(np.float64), y.astype(np.float64))
    np.testing.assert_allclose(dots(x, y), wanted, rtol=1e-12, atol=1e-12)
    assert np.array_equal(dots(x, y)[7:8], dots(np.ascontiguousarray(x[:, 7:8]), y[:, 7:8]))


# -- one sequence of bytes, in the room there is -----------------------------------------------------------------------

OUTPUTS = {"rank": "o + truncate_rank(a - o, 3) + truncate_rank(b - o, 4)", "cosine": "add_cosine_b(a, b, 0.4)",
           "extract": "extract(o, a, b, 0.4, 0.2, 1.5)", "top": "top_k_tensor_sum(a, b, 0.5, 0.2)",
           "cross": "distribution_crossover(a, b, o, 0.3, 0.1)", "fusion": "arcee_fusion(o, a)",
           "smooth": "smooth_add(a, b, o)", "rows": "nuslerp([a, b], base=o, along=last)",
           "stock": "model_stock(o, [a, b], filter_wise=true)", "ram": "ram_plus(o, [a, b])",
           "nested": "o + truncate_rank(smooth(ties_trim(a - o, 0.5)), 2)"}  # fmt: skip
ALL = (
    "mergeflow: 1\nsources: { o: models/o.safetensors, a: models/a.safetensors, b: models/b.safetensors }\noutputs:\n"
    + "".join(f"  {name}.safetensors: {call}\n" for name, call in OUTPUTS.items())
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(13)
    base: Model = {"large": weights(rng, "F16", (300, 401)), "conv": weights(rng, "BF16", (40, 30, 3, 3)),
                   "tall": weights(rng, "F32", (5003, 12)), "one": weights(rng, "F16", ()),
                   "f64": weights(rng, "F64", (999,))}  # fmt: skip
    where = tmp_path_factory.mktemp("whole") / "models"
    write(where / "o.safetensors", base)
    for name in "ab":
        write(where / f"{name}.safetensors", {k: related(rng, t) for k, t in base.items()})
    return where


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made(tmp_path_factory.mktemp("reference"), folder, ALL, jobs=1)


@pytest.mark.parametrize("more", [{"jobs": 2}, {"jobs": 8}, {"jobs": 2, "memory": 290_000_000}], ids=str)
def test_threads_and_memory(tmp_path: Path, folder: Path, reference: dict[str, str], more: dict[str, int]) -> None:
    assert made(tmp_path, folder, ALL, **more) == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX"},
     {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "MKL_CBWR": "AUTO"}],
    ids=["default", "avx2"],
)  # fmt: skip
def test_vector_units(tmp_path: Path, folder: Path, reference: dict[str, str], environment: dict[str, str]) -> None:
    assert made_elsewhere(tmp_path, folder, ALL, **environment) == reference


def test_what_cannot_fit_is_refused_when_planning(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base: Model = {"small": weights(rng, "F16", (40, 30)), "large": weights(rng, "F16", (900, 1000))}
    write_models(tmp_path, {"o": base, "a": {k: related(rng, t) for k, t in base.items()}})
    planned = plan(tmp_path, recipe("o + truncate_rank(a - o, 2)", "o a "))
    (output,) = planned.outputs
    found = largest(planned.staged, output.works)
    assert (found.tensor, found.kernel) == ("large", "truncate_rank")
    assert found.nbytes == 2 * 4 * 900_000 + 40 * 900**2
    need = footprint(planned.programs, [output.works], planned.staged)
    rich = place(need, Budget(1 << 33, 2), workers=2)
    assert rich.whole == 2 * found.nbytes
    tight = place(need, Budget(rich.peak - 1, 2), workers=2)
    assert found.nbytes <= tight.whole < rich.whole
    with pytest.raises(ResourceError, match=r"this merge needs .* \(39\.6 MB of it for truncate_rank of large\)"):
        plan(tmp_path, recipe("o + truncate_rank(a - o, 2)", "o a "), memory=200_000_000)


def test_results_of_kernels_before_are_counted(tmp_path: Path) -> None:
    models = family("F16", "ab")
    write_models(tmp_path, models)
    planned = plan(tmp_path, recipe("o + smooth(a - o) + smooth(b - o)", "o a b "))
    work = next(w for w in planned.outputs[0].works if w.name == "hundred")
    program = planned.staged[work.staged]
    one = 24 * 100 + 8 * 9 * 10
    assert whole_bytes(program, (10, 10)) == 4 * 100 + 2 * 4 * 100 + one


def test_no_more_is_admitted_than_there_is_room_for() -> None:
    gate, inside, most, lock = Gate(100), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with gate.admitted(40):
                with lock:
                    inside += 40
                    most = max(most, inside)
                with lock:
                    inside -= 40

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most in (40, 80)
    with pytest.raises(KeyError), gate.admitted(100):
        raise KeyError
    with gate.admitted(100):
        pass


def test_what_a_stable_method_needs_is_in_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path, family("F16", "a"))
    stable, exact = (recipe(x, "o a ") for x in ("o + truncate_rank(a - o, 1)", "o + smooth(a - o)"))

    def keys(text: str) -> dict[str, str]:
        return {w.name: w.key for w in plan(tmp_path, text).outputs[0].works}

    before = keys(stable), keys(exact)
    monkeypatch.setattr(tiers, "_environment", lambda: "torch-1.0/other")
    after = keys(stable), keys(exact)
    assert {name for name in before[0] if before[0][name] == after[0][name]} == {"same", "ids", "none"}
    assert before[1] == after[1]

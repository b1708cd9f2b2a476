"""All methods: the same bytes for any number of threads, any tile, and whatever else is in the model.

All calls of catalogue.py are built at once; a tensor's result is compared with that of one thread by itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from catalogue import CALLS
from support.builds import build, write_models
from support.checkpoints import Model, numbers, read, related, weights

from mergeflow.executor import compiled
from mergeflow.executor.device import KERNELS_VARIABLE
from mergeflow.methods.kernels import GRID
from mergeflow.plan import jobs as plan_jobs

FILES = ("base", "a", "b", "c", "fa", "fb")
SHAPES = {"long": (GRID + 4_321,), "wide": (33, 65), "conv": (4, 3, 3, 3)}
MORE = {"added": (7, 9), "a.first": (5,)}


def models(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Model]:
    rng = np.random.default_rng(seed)
    found: dict[str, Model] = {name: {} for name in FILES}
    for key, shape in shapes.items():
        found["base"][key] = base = weights(rng, "F16", shape)
        for name in "abc":
            found[name][key] = related(rng, base)
        for name in ("fa", "fb"):
            found[name][key] = numbers("F32", rng.random(shape) + 0.5)
    return found


GIVEN, OTHERS = models(SHAPES, 3), models(MORE, 4)


def made(folder: Path, given: dict[str, Model], **more: object) -> dict[str, Model]:
    """The results by call."""
    folder.mkdir(exist_ok=True)
    write_models(folder, given)
    outputs = "".join(f"  {i}.safetensors: '{call}'\n" for i, call in enumerate(CALLS))
    sources = ", ".join(f"{name}: {name}.safetensors" for name in FILES)
    build(folder, f"mergeflow: 1\nsources: {{ {sources} }}\noutputs:\n{outputs}", **more)
    return {call: read(folder / f"{i}.safetensors") for i, call in enumerate(CALLS)}


def other_bytes(found: dict[str, Model], reference: dict[str, Model]) -> list[str]:
    return [
        f"{call}: {name}"
        for call, wanted in reference.items()
        for name, t in wanted.items()
        if name in SHAPES and found[call][name] != t
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return made(tmp_path_factory.mktemp("reference"), GIVEN, jobs=1)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 8])
def test_threads_and_tiles(
    tmp_path: Path, reference: dict[str, Model], monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """Of compiled kernels also the spans, of others also whether operands are kept in memory."""
    monkeypatch.setattr(compiled, "SPAN", GRID * (1 if jobs == 2 else 8))
    monkeypatch.setattr(plan_jobs, "PIECE", plan_jobs.PIECE // 2)
    assert not other_bytes(made(tmp_path, GIVEN, jobs=jobs), reference)


@pytest.mark.slow
def test_by_torch_alone(tmp_path: Path, reference: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "torch")
    assert not other_bytes(made(tmp_path, GIVEN, jobs=2), reference)


@pytest.mark.slow
def test_other_tensors_and_their_order(tmp_path: Path, reference: dict[str, Model]) -> None:
    """Two more tensors, all in another order: no result of those that were there before is another. So no mask is."""
    given = {name: dict(reversed({**OTHERS[name], **model}.items())) for name, model in GIVEN.items()}
    found = made(tmp_path, given, jobs=8)
    assert not other_bytes(found, reference)
    assert all(set(model) == {*SHAPES, *MORE} for model in found.values())

"""mergekit's configurations, imported and built, against mergekit-pytorch itself: `make test-peers`.

With --faithful the sums are bit for bit mergekit's in float32, float16 and bfloat16; the methods whose roundings cannot
be repeated are as near as `STEPS` says, in numbers of the dtype.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.peers import ROOT
from mergeflow import load
from mergeflow.exchange.read import read

HERE = Path(__file__).parent
PYTHON = ROOT / "build" / "bench-venv" / "bin" / "python"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="sd-mecha and mergekit are not installed: `make test-peers` does"),
]

THREE = "models: [{ model: a.safetensors, parameters: { weight: 0.3 } }, { model: b.safetensors, parameters: { weight: 0.55 } }, { model: c.safetensors, parameters: { weight: 0.2 } }]"  # noqa: E501
PLAIN = "models: [{ model: a.safetensors }, { model: b.safetensors }, { model: c.safetensors }]"
BASE = "base_model: o.safetensors"
CONFIGS = {
    "linear": f"merge_method: linear\n{THREE}",
    "linear-free": f"merge_method: linear\n{THREE}\nparameters: {{ normalize: false }}",
    "linear-filtered": "merge_method: linear\nmodels:\n- model: a.safetensors\n  parameters: { weight: 1 }\n- model: b.safetensors\n  parameters: { weight: [{ filter: attn, value: 3 }, { value: 1 }] }",  # noqa: E501
    "task": f"merge_method: task_arithmetic\n{BASE}\n{THREE}",
    "task-scaled": f"merge_method: task_arithmetic\n{BASE}\n{THREE}\nparameters: {{ lambda: 0.7 }}",
    "task-normalized": f"merge_method: task_arithmetic\n{BASE}\n{THREE}\nparameters: {{ normalize: true }}",
    "ties": f"merge_method: ties\n{BASE}\n{THREE}\nparameters: {{ density: 0.5 }}",
    "ties-free": f"merge_method: ties\n{BASE}\n{THREE}\nparameters: {{ density: 0.5, normalize: false }}",
    "breadcrumbs": f"merge_method: breadcrumbs\n{BASE}\n{THREE}\nparameters: {{ density: 0.5, gamma: 0.25 }}",
    "slerp": f"merge_method: slerp\n{BASE}\nmodels: [{{ model: a.safetensors }}]\nparameters: {{ t: 0.3 }}",
    "nuslerp": "merge_method: nuslerp\nmodels: [{ model: a.safetensors, parameters: { weight: 0.7 } }, { model: b.safetensors, parameters: { weight: 0.3 } }]",  # noqa: E501
    "karcher": f"merge_method: karcher\n{PLAIN}\nparameters: {{ max_iter: 50, tol: 1e-9 }}",
    "model_stock": f"merge_method: model_stock\n{BASE}\n{PLAIN}",
    "nearswap": f"merge_method: nearswap\n{BASE}\nmodels: [{{ model: a.safetensors }}]\nparameters: {{ t: 0.01 }}",
    "passthrough": "merge_method: passthrough\nmodels: [{ model: a.safetensors }]",
}
ALL, SINGLE = tuple(DTYPES), ("float32",)
EXACT = {
    "linear": ALL,
    "linear-free": ALL,
    "task": ALL,
    "task-scaled": ALL,
    "task-normalized": ALL,
    "breadcrumbs": SINGLE,  # of half types, several values are as large as the smallest kept one
    "slerp": ("float16", "bfloat16"),  # in float32 the order of torch's sums shows
    "passthrough": ALL,
}
NEAR = {"float32": 4e-7, "float16": 1e-3, "bfloat16": 8e-3}  # of values of about 0.1
TRIMMED = ("ties", "ties-free", "breadcrumbs")  # where a value at the edge may be kept by one and not by the other


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each dtype, with models, configurations and what mergekit makes of them."""
    folder = tmp_path_factory.mktemp("mergekit")
    for dtype, kind in DTYPES.items():
        here = folder / dtype
        here.mkdir()
        random = torch.Generator().manual_seed(5)
        shapes = {"layers.attn.weight": (32, 48), "layers.mlp.weight": (1000,), "conv": (4, 3, 3, 3)}
        base = {name: torch.randn(*shape, generator=random) * 0.1 for name, shape in shapes.items()}
        for model in "oabc":
            step = 0.02 * (model != "o")
            tuned = {n: (t + torch.randn(t.shape, generator=random) * step).to(kind) for n, t in base.items()}
            save_file(tuned, here / f"{model}.safetensors")
        for name, text in CONFIGS.items():
            (here / f"{name}.yml").write_text(text + "\n")
        done = subprocess.run(
            [PYTHON, HERE / "run_mergekit.py", *(f"{name}.yml" for name in CONFIGS)],
            cwd=here, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def ours(folder: Path, name: str, *, faithful: bool) -> dict[str, torch.Tensor]:
    recipe = folder / f"{name}{'-faithful' if faithful else ''}.yaml"
    recipe.write_text(read(folder / f"{name}.yml", faithful=faithful).text)
    from mergeflow.build.settings import Settings

    out = folder / f"ours{faithful}"
    with load(recipe, settings=Settings(output_root=out, memo=folder / "memo")) as project:
        project.build()
    return load_file(out / f"{name}.safetensors")


def places(tensor: torch.Tensor) -> np.ndarray:
    """Where values stand among all numbers of their dtype."""
    signed = {4: torch.int32, 2: torch.int16}[tensor.element_size()]
    bits = tensor.contiguous().view(signed).numpy().astype(np.int64)
    least = -(1 << (8 * tensor.element_size() - 1))
    return np.where(bits < 0, least - bits, bits)


def furthest(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> int:
    assert x.keys() == y.keys()
    assert all(x[name].dtype == y[name].dtype for name in x)
    return max(int(np.abs(places(x[name]) - places(y[name])).max()) for name in x)


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in EXACT for dtype in EXACT[name]])
def test_faithful_is_bit_for_bit(made: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made / dtype)
    found, theirs = ours(made / dtype, name, faithful=True), load_file(made / dtype / f"{name}.yml.theirs.safetensors")
    assert furthest(found, theirs) == 0


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in CONFIGS for dtype in DTYPES])
def test_what_is_imported_is_the_same_merge(made: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made / dtype)
    found, theirs = ours(made / dtype, name, faithful=False), load_file(made / dtype / f"{name}.yml.theirs.safetensors")
    assert found.keys() == theirs.keys()
    for tensor, wanted in theirs.items():
        assert found[tensor].dtype == wanted.dtype
        far = (found[tensor].double() - wanted.double()).abs() > NEAR[dtype]
        assert far.double().mean() <= (0.01 if name in TRIMMED else 0), tensor

"""mergekit's configurations, imported and built, against mergekit-pytorch itself: `make test-peers`.

With --faithful whatever mergekit computes value by value is bit for bit the same in float32, float16 and bfloat16, but
where several values are as large as the smallest kept one: which of those mergekit keeps depends on the processor's
sort. What it computes of sums over whole tensors is within `NEAR`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.mergekit_examples import EXAMPLES, write_models

from bench.peers import ROOT
from mergeflow import load
from mergeflow.exchange.read import read

HERE = Path(__file__).parent
PYTHON = ROOT / "build" / "bench-venv" / "bin" / "python"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
State = dict[str, torch.Tensor]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="sd-mecha and mergekit are not installed: `make test-peers` does"),
]

THREE = "models: [{ model: a.safetensors, parameters: { weight: 0.3 } }, { model: b.safetensors, parameters: { weight: 0.55 } }, { model: c.safetensors, parameters: { weight: 0.2 } }]"  # noqa: E501
MIXED = """models:
- { model: a.safetensors, parameters: { weight: -0.3 } }
- { model: b.safetensors, parameters: { weight: [{ filter: attn, value: 0.9 }, { value: 0.15 }] } }"""
PLAIN = "models: [{ model: a.safetensors }, { model: b.safetensors }, { model: c.safetensors }]"
ONE = "models: [{ model: a.safetensors }]"
BASE = "base_model: o.safetensors"
CONFIGS = {
    "linear": f"merge_method: linear\n{THREE}",
    "linear-free": f"merge_method: linear\n{THREE}\nparameters: {{ normalize: false }}",
    "linear-filtered": f"merge_method: linear\n{MIXED}",
    "linear-narrowed": f"merge_method: linear\n{THREE}\ndtype: float32\nout_dtype: bfloat16",
    "linear-cast": f"merge_method: linear\n{THREE}\ndtype: bfloat16",
    "task": f"merge_method: task_arithmetic\n{BASE}\n{THREE}",
    "task-scaled": f"merge_method: task_arithmetic\n{BASE}\n{THREE}\nparameters: {{ lambda: 0.7 }}",
    "task-normalized": f"merge_method: task_arithmetic\n{BASE}\n{THREE}\nparameters: {{ normalize: true }}",
    "task-filtered": f"merge_method: task_arithmetic\n{BASE}\n{MIXED}\nparameters: {{ normalize: true }}",
    "task-narrowed": f"merge_method: task_arithmetic\n{BASE}\n{THREE}\ndtype: float32\nout_dtype: float16",
    "ties": f"merge_method: ties\n{BASE}\n{THREE}\nparameters: {{ density: 0.5 }}",
    "ties-free": f"merge_method: ties\n{BASE}\n{THREE}\nparameters: {{ density: 0.57, normalize: false }}",
    "ties-whole": f"merge_method: ties\n{BASE}\n{MIXED}\nparameters: {{ lambda: 0.7 }}",
    "breadcrumbs": f"merge_method: breadcrumbs\n{BASE}\n{THREE}\nparameters: {{ density: 0.5, gamma: 0.25 }}",
    "breadcrumbs-whole": f"merge_method: breadcrumbs\n{BASE}\n{THREE}",
    "breadcrumbs-crowded": f"merge_method: breadcrumbs\n{BASE}\n{THREE}\nparameters: {{ density: 0.9, gamma: 0.3 }}",
    "breadcrumbs_ties": f"merge_method: breadcrumbs_ties\n{BASE}\n{THREE}\nparameters: {{ density: 0.5, gamma: 0.1 }}",
    "slerp": f"merge_method: slerp\n{BASE}\n{ONE}\nparameters: {{ t: 0.3 }}",
    "nuslerp": "merge_method: nuslerp\nmodels: [{ model: a.safetensors, parameters: { weight: 0.7 } }, { model: b.safetensors, parameters: { weight: 0.3 } }]",  # noqa: E501
    "multislerp": f"merge_method: multislerp\n{THREE}",
    "karcher": f"merge_method: karcher\n{PLAIN}\nparameters: {{ max_iter: 50, tol: 1e-9 }}",
    "model_stock": f"merge_method: model_stock\n{BASE}\n{PLAIN}",
    "sce": f"merge_method: sce\n{BASE}\n{PLAIN}",
    "nearswap": f"merge_method: nearswap\n{BASE}\n{ONE}\nparameters: {{ t: 0.01 }}",
    "nearswap-least": f"merge_method: nearswap\n{BASE}\n{ONE}\nparameters: {{ t: 1e-7 }}",
    "ram": f"merge_method: ram\n{BASE}\n{PLAIN}\nparameters: {{ epsilon: 0.01 }}",
    "ramplus_tl": f"merge_method: ramplus_tl\n{BASE}\n{PLAIN}\nparameters: {{ epsilon: 0.01, r: 0.5, alpha: 0.3 }}",
    "passthrough": "merge_method: passthrough\nmodels: [{ model: a.safetensors }]",
    "passthrough-scaled": "merge_method: passthrough\nmodels: [{ model: a.safetensors, parameters: { scale: 0.3 } }]",
}
REDUCED = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce")  # made of sums over whole tensors
EXACT = [name for name in CONFIGS if name not in REDUCED]
BANDS = {"ties": (0.5, None), "ties-free": (0.57, None), "breadcrumbs": (0.5, 0.25), "breadcrumbs-crowded": (0.9, 0.3),
         "breadcrumbs_ties": (0.5, 0.1)}  # fmt: skip
NEAR = {"float32": 4e-7, "float16": 1e-3, "bfloat16": 8e-3}  # of values of about 0.1
FOLDERS = ("linear", "gradient-slerp", "ties", "filters", "negative", "model_stock", "fusion")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each dtype, with models, configurations and what mergekit makes of them; one of language models."""
    folder = tmp_path_factory.mktemp("mergekit")
    for dtype, kind in DTYPES.items():
        here = folder / dtype
        here.mkdir()
        random = torch.Generator().manual_seed(5)
        shapes = {"layers.attn.weight": (32, 48), "layers.mlp.weight": (1000,), "conv": (4, 3, 3, 3), "one": (1,)}
        base = {name: torch.randn(*shape, generator=random) * 0.1 for name, shape in shapes.items()}
        for model in "oabc":
            step = 0.02 * (model != "o")
            tuned = {n: (t + torch.randn(t.shape, generator=random) * step).to(kind) for n, t in base.items()}
            save_file(tuned, here / f"{model}.safetensors")
        for name, text in CONFIGS.items():
            (here / f"{name}.yml").write_text(text + "\n")
    (folder / "folders").mkdir()
    write_models(folder / "folders")
    for name in FOLDERS:
        (folder / "folders" / f"{name}.yml").write_text(EXAMPLES[name])
    jobs = [str(path) for path in sorted(folder.glob("*/*.yml"))]
    done = subprocess.run(
        [PYTHON, HERE / "run_mergekit.py", *jobs], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def ours(folder: Path, name: str, *, faithful: bool) -> State:
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


def apart(found: State, wanted: State) -> dict[str, np.ndarray]:
    assert found.keys() == wanted.keys()
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in wanted.items()}
    return {name: np.abs(places(found[name]) - places(wanted[name])) for name in found}


def at_the_edge(folder: Path, tensor: str, density: float, gamma: float | None) -> np.ndarray:
    """Where a model's difference is as large as the first or the last one that is kept, and others are, too."""
    base, *others = (load_file(folder / f"{model}.safetensors")[tensor] for model in "oabc")
    found = np.zeros(base.shape, np.bool_)
    for other in others:
        size = (other - base).abs().float().numpy()
        n, ordered = size.size, np.sort(size.ravel())[::-1]
        keep = max(1, int(density * n)) if gamma is None else int(density * n)
        top = 0 if gamma is None else n - keep - max(0, n - keep - int(gamma * n))
        for rank in {top, top + keep - 1} if keep else ():
            equal = size == ordered[rank]
            found |= equal if equal.sum() > 1 else False
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_faithful_is_bit_for_bit(made: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made / dtype)
    found, theirs = ours(made / dtype, name, faithful=True), load_file(made / dtype / f"{name}.yml.theirs.safetensors")
    edges = []
    for tensor, far in apart(found, theirs).items():
        edge = at_the_edge(made / dtype, tensor, *BANDS[name]) if name in BANDS else np.zeros(far.shape, np.bool_)
        assert not far[~edge].any(), f"{tensor}: {np.count_nonzero(far[~edge])} of {far.size}"
        edges.append(edge.ravel())
    assert np.concatenate(edges).mean() <= {"float32": 0, "float16": 0.01, "bfloat16": 0.06}[dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_faithful_slerp_is_one_number_apart_at_most_in_half_types(
    made: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made / dtype)
    found, theirs = ours(made / dtype, "slerp", faithful=True), load_file(made / dtype / "slerp.yml.theirs.safetensors")
    assert max(far.max() for far in apart(found, theirs).values()) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "ties-whole"])  # of which a loss is told
def test_what_is_imported_is_the_same_merge(made: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made / dtype)
    found, theirs = ours(made / dtype, name, faithful=False), load_file(made / dtype / f"{name}.yml.theirs.safetensors")
    assert found.keys() == theirs.keys()
    for tensor, wanted in theirs.items():
        assert found[tensor].dtype == wanted.dtype or name == "ramplus_tl"
        if tensor == "one" and name in BANDS:  # of a share of one value mergekit's breadcrumbs keep none
            continue
        near = NEAR[f"{found[tensor].dtype}".removeprefix("torch.")]
        far = (found[tensor].double() - wanted.double()).abs() > near
        # rounded differences are as large as others, and balance others, where exact ones do not
        voted = name in BANDS or name == "sce" or name.startswith("ram")
        assert far.double().mean() <= (0.05 if voted else 0), tensor


@pytest.mark.parametrize("name", FOLDERS)
def test_language_models(made: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, as mergekit-yaml takes them: gradients over layers, filters, slices."""
    folder = made / "folders"
    monkeypatch.chdir(folder)
    found, theirs = ours(folder, name, faithful=True), load_file(folder / f"{name}.yml.theirs.safetensors")
    for tensor, far in apart(found, theirs).items():
        if name in ("linear", "filters", "negative"):
            assert not far.any(), tensor
        elif name == "ties":  # of a few values, many are as large as others
            assert np.mean(far != 0) <= 0.05, tensor
        elif name == "gradient-slerp":
            assert far.max() <= 1, tensor
        elif name == "model_stock":
            assert (found[tensor].double() - theirs[tensor].double()).abs().max() <= NEAR["bfloat16"], tensor
        else:
            assert (found[tensor].double() - theirs[tensor].double()).abs().max() <= NEAR["float32"], tensor


def test_a_document_that_uses_another(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's result is a file there, a rounded step here."""
    folder = made / "float16"
    monkeypatch.chdir(folder)
    second = f"merge_method: task_arithmetic\n{BASE}\nmodels:\n- {{ model: FIRST, parameters: {{ weight: 0.6 }} }}\n- {{ model: c.safetensors, parameters: {{ weight: 0.5 }} }}\n"  # noqa: E501
    (folder / "second.yml").write_text(second.replace("FIRST", "linear.yml.theirs.safetensors"))
    subprocess.run([PYTHON, HERE / "run_mergekit.py", folder / "second.yml"], check=True, capture_output=True)
    (folder / "both.yml").write_text(f"name: first\n{CONFIGS['linear']}\n---\n{second.replace('FIRST', 'first')}")
    found, theirs = ours(folder, "both", faithful=True), load_file(folder / "second.yml.theirs.safetensors")
    assert not any(far.any() for far in apart(found, theirs).values())

"""The plugin of docs/plugin: installed, used, edited; and what is said of packages that are wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Model, numbers, read, write
from support.exact import F32, doubles

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"matrix": (40, 60), "row": (70,), "conv": (8, 3, 3, 3), "one": ()}
RECIPE = """mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params: { most: 0.05 }
outputs:
  soft.safetensors: a + soft_limit(b - c, most)
  length.safetensors: a + same_length(b - c, a - c)
  ties.safetensors: gentle_ties(a, [b @ 0.75, c], most=0.1)
  plain.safetensors: a + (b - c) * 0.5
"""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the plugin is installed in; nothing is fetched for it."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "docs/plugin", folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(folder / "site"), "./source"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return folder / "site"


@pytest.fixture
def site(package: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(package, tmp_path / "site"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Three models, whose tensor `row` is the same in b and c, and a recipe."""
    folder = tmp_path / "work"
    rng = np.random.default_rng(3)
    for name in "abc":
        model: Model = {key: numbers("F32", rng.normal(size=shape) * 0.1, shape) for key, shape in SHAPES.items()}
        if name == "c":
            model["row"] = read(folder / "b.safetensors")["row"]
        write(folder / f"{name}.safetensors", model)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def run(work: Path, site: Path | None, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MERGEFLOW_CACHE")}
    env |= {"MERGEFLOW_MEMO": str(work / "memo"), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    if site is not None:
        env["PYTHONPATH"] = str(site)
    command = [sys.executable, "-P", "-m", "mergeflow", *arguments]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def values(work: Path, name: str) -> dict[str, np.ndarray]:
    return {key: doubles(F32, t.data).reshape(t.shape) for key, t in read(work / f"{name}.safetensors").items()}


def test_a_recipe_is_built_with_it(work: Path, package: Path) -> None:
    run(work, package, "build")
    a, b, c = (values(work, name) for name in "abc")
    found = {name: values(work, name) for name in ("soft", "length", "ties")}
    for key in SHAPES:
        delta = b[key] - c[key]
        soft = a[key] + delta * 0.05 / (np.abs(delta) + 0.05)
        np.testing.assert_array_max_ulp(found["soft"][key].astype("f4"), soft.astype("f4"), 1)
        lengths = np.linalg.norm(a[key] - c[key]), np.linalg.norm(delta)
        length = a[key] + delta * (lengths[0] / lengths[1] if lengths[1] else 0)
        np.testing.assert_allclose(found["length"][key], length, rtol=1e-6, atol=1e-8)
        parts = [w * 0.1 * (x[key] - a[key]) / (np.abs(x[key] - a[key]) + 0.1) for w, x in ((0.75, b), (1.0, c))]
        sign = np.sign(parts[0] + parts[1])
        total = sum(np.where(np.sign(p) == sign, p, 0) for p in parts)
        count = sum(np.where(np.sign(p) == sign, w, 0) for w, p in zip((0.75, 1.0), parts, strict=True))
        np.testing.assert_allclose(found["ties"][key], a[key] + total / count, rtol=1e-6, atol=1e-8)


def test_it_is_listed_and_has_pages(work: Path, package: Path) -> None:
    listed = run(work, package, "methods").stdout
    assert "soft_limit " in listed
    assert "delta·most / (|delta| + most), value by value" in listed
    assert listed.count("mergeflow-example 0.1.0") == 3
    page = run(work, package, "methods", "gentle_ties").stdout
    assert page.startswith("gentle_ties(base, models, most=0.05, scale=1)\n")
    assert "Example" in page
    assert "made of soft_limit, version 1" in page
    (entry,) = json.loads(run(work, package, "methods", "same_length", "--json").stdout)["methods"]
    assert entry["from"] == "mergeflow-example 0.1.0"
    assert entry["examples"] == ["a + same_length(b - c, a - c)"]


@pytest.mark.slow
def test_an_edit_of_its_source_makes_its_tensors_again_and_no_others(work: Path, site: Path) -> None:
    run(work, site, "build")
    assert "up to date" in run(work, site, "build").stdout
    before = {name: (work / f"{name}.safetensors").stat().st_mtime_ns for name in ("soft", "length", "ties", "plain")}
    edited = site / "mergeflow_example" / "limits.py"
    edited.write_text(edited.read_text() + "\n# another thought\n")
    told = " ".join(run(work, site, "explain").stdout.split())
    assert "the method soft_limit changed: version 1 of " in told
    run(work, site, "build")
    after = {name: (work / f"{name}.safetensors").stat().st_mtime_ns for name in before}
    assert {name for name in before if after[name] != before[name]} == {"soft", "length", "ties"}


def test_without_it_the_name_is_not_known(work: Path) -> None:
    told = run(work, None, "plan", code=2).stderr
    assert "no method is called soft_limit" in told


def installed(folder: Path, module: str, text: str, *names: str, distribution: str = "") -> Path:
    """A package by hand: a module, and the metadata with its entry points."""
    name = distribution or module
    info = folder / f"{name}-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    points = "".join(f"{method} = {module}:{method}\n" for method in names)
    (info / "entry_points.txt").write_text(f"[mergeflow.methods]\n{points}")
    (folder / f"{module}.py").write_text(text)
    return folder


METHOD = '''from mergeflow.methods.registry import Model, method

@method
def {name}(a: Model) -> Model:
    """a"""
    return a
'''
WRONG = {
    "import": ("import nowhere_to_be_found\n", "broken of wrong 2.0 cannot be loaded: ModuleNotFoundError: No"),
    "syntax": ("def (\n", "broken of wrong 2.0 cannot be loaded: SyntaxError"),
    "absent": ("x = 1\n", "broken of wrong 2.0 cannot be loaded: AttributeError"),
    "undeclared": ("def broken(a): return a\n", "wrong 2.0 offers the method broken, but wrong:broken does not"),
    "undescribed": (METHOD.format(name="broken").replace('    """a"""\n', ""), "the method broken has no document"),
    "another": (METHOD.format(name="ties") + "broken = ties\n", "two methods are called ties: one of mergeflow."),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_package_that_is_wrong_is_one_clear_error(work: Path, tmp_path: Path, text: str, message: str) -> None:
    site = installed(tmp_path / "site", "wrong", text, "broken")
    (work / "recipe.yaml").write_text(RECIPE.split("params")[0] + "outputs: { x.safetensors: broken(a) }\n")
    told = run(work, site, "plan", code=1).stderr
    assert message in " ".join(told.split())
    assert "Traceback" not in told


FAILING = METHOD.format(name="broken").replace("return a", "return a.nothing")
FAILS_AT_WORK = '''from mergeflow.methods.kernels import kernel
from mergeflow.methods.registry import Delta, method

def _apply(given, found, tiles, begin, out):
    out.copy_(tiles[1])

BROKEN = kernel("broken", version=1, operands=("delta",), result="delta", apply=_apply)

@method(BROKEN)
def broken(delta: Delta) -> Delta:
    """delta"""
    return BROKEN(delta)
'''


@pytest.mark.parametrize(
    ("command", "text", "call", "message"),
    [
        ("plan", FAILING, "broken(a)", "recipe.yaml:3:27: wrong 2.0 fails in broken: AttributeError: "),
        ("build", FAILS_AT_WORK, "a + broken(b - c)", "index out of range (wrong.py, line 5)"),
    ],
)
def test_a_method_that_fails_is_its_packages_error_and_no_bug(
    work: Path, tmp_path: Path, command: str, text: str, call: str, message: str
) -> None:
    site = installed(tmp_path / "site", "wrong", text, "broken")
    (work / "recipe.yaml").write_text(RECIPE.split("params")[0] + f"outputs: {{ x.safetensors: {call} }}\n")
    told = " ".join(run(work, site, command, code=1).stderr.split())
    assert message in told
    assert "wrong 2.0 fails " in told
    assert "(wrong.py, line " in told
    assert "repair or remove it" in told
    assert "Traceback" not in told


def test_names_that_clash(work: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    installed(site, "one", METHOD.format(name="mine"), "mine")
    installed(site, "two", METHOD.format(name="mine"), "mine")
    installed(site, "three", METHOD.format(name="slerp"), "slerp")
    (work / "recipe.yaml").write_text(RECIPE.split("params")[0] + "outputs: { x.safetensors: mine(a) }\n")
    told = " ".join(run(work, site, "plan", code=1).stderr.split())
    assert "several packages have a method called mine: " in told
    assert "one 2.0" in told
    assert "two 2.0" in told
    installed(site, "wrong", WRONG["import"][0], "broken")
    listed = run(work, site, "methods").stdout
    assert WRONG["import"][1] in listed, "and the others are listed all the same"
    assert "several packages have a method called mine" in listed
    assert "three 2.0 has a method called slerp, as mergeflow has" in listed

"""Recipes built in a folder of the test's own, and what came of it."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mergeflow
from mergeflow.build.project import BuildResult, Project, Settings
from mergeflow.events import Event, Reporter, Warned, silent
from mergeflow.plan.plans import Plan
from support.checkpoints import Model, read, write

HEAD = "mergeflow: 1\n"
TESTS = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])


def settings(folder: Path, **more: object) -> Settings:
    """Settings that touch nothing outside the folder."""
    return Settings(output_root=folder, cache=folder / "cache", memo=folder / "memo", **more)  # type: ignore[arg-type]


def write_models(folder: Path, models: Mapping[str, Model]) -> None:
    for name, model in models.items():
        write(folder / f"{name}.safetensors", model)


def recipe(expression: str, sources: str = "abc", *, dtype: str = "", more: str = "", out: str = "mix") -> str:
    """A recipe of one output over sources with one-letter names (or names parted by spaces)."""
    names = sources.split() if " " in sources else list(sources)
    lines = [HEAD, "sources:\n", *(f"  {n}: {n}.safetensors\n" for n in names), more]
    kind = f"\n    dtype: {dtype}" if dtype else ""
    return "".join(lines) + f"outputs:\n  {out}.safetensors:\n    from: {expression}{kind}\n"


def project(folder: Path, text: str, report: Reporter = silent, **more: object) -> Project:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return mergeflow.load(path, settings=settings(folder, **more), report=report)


def build(folder: Path, text: str, report: Reporter = silent, **more: object) -> BuildResult:
    with project(folder, text, report, **more) as p:
        return p.build()


def plan(folder: Path, text: str, **more: object) -> Plan:
    with project(folder, text, **more) as p:
        return p.plan()


def merged(folder: Path, expression: str, models: Mapping[str, Model], *, dtype: str = "", **more: str) -> Model:
    """The tensors of an expression over models, built in a folder that holds nothing else of that name."""
    write_models(folder, models)
    build(folder, recipe(expression, " ".join([*models, ""]), dtype=dtype, **more), force=True)
    return read(folder / "mix.safetensors")


class Heard(list[Event]):
    """A reporter that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def warnings(self) -> list[str]:
        return [e.message for e in self if isinstance(e, Warned)]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parts(folder: Path) -> list[Path]:
    """Temporary files, anywhere below."""
    return [p for p in folder.rglob("*.part") if p.is_file()]


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, with the environment changed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MERGEFLOW")} | environment
    env["PYTHONPATH"] = TESTS
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code, *map(str, arguments)],
        env={k: v for k, v in env.items() if v != "<unset>"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


# -- the same bytes, however they are made -------------------------------------------------------------------------

_BUILD = """
import sys, warnings
warnings.simplefilter("ignore", ImportWarning)
from pathlib import Path
from support.builds import build
build(Path(sys.argv[1]), sys.argv[2], jobs=2)
"""


def made(folder: Path, models: Path, text: str, **more: object) -> dict[str, str]:
    """The hashes of a recipe's outputs by name, built in a folder where `models/` is a link to the models."""
    folder.mkdir(exist_ok=True)
    (folder / "models").symlink_to(models)
    build(folder, text, **more)
    return _hashes(folder)


def made_elsewhere(folder: Path, models: Path, text: str, **environment: str) -> dict[str, str]:
    """The same, built by another Python in an environment of its own. numpy knows names of x86's features on x86 alone,
    and warns of them elsewhere."""
    if platform.machine() not in ("x86_64", "AMD64"):
        environment.pop("NPY_DISABLE_CPU_FEATURES", None)
    (folder / "models").symlink_to(models)
    python(_BUILD, folder, text, **environment)
    return _hashes(folder)


def _hashes(folder: Path) -> dict[str, str]:
    return {path.stem: sha256(path) for path in folder.glob("*.safetensors")}

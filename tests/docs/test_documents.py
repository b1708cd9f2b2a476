"""What the documents show works: recipes are built, errors are those printed, links and lists agree with the code."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from support.tiny_models import SD1, SD1_BLOCKS, settings, write_model, write_sources

import mergeflow
from mergeflow import MergeflowError, Project
from mergeflow.methods import registry
from mergeflow.recipe import Recipe, loads
from mergeflow.sources import memo
from mergeflow.store import records

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "cache/README.md")),
    *(ROOT / folder / "README.md" for folder in ("recipes", "tests/corpus", "tests/golden")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/plugin/README.md",
    *sorted((ROOT / "docs/decisions").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)\)")


class Snippet(NamedTuple):
    page: Path
    line: int
    kind: str
    mark: str
    text: str
    then: str  # the text block that follows it at once

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(kind: str, mark: str = "") -> list[Snippet]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = list(BLOCK.finditer(text))
        for block, after in itertools.zip_longest(blocks, blocks[1:]):
            if (block[1], block[2] or "") != (kind, mark):
                continue
            follows = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
            line = text.count("\n", 0, block.start()) + 1
            found.append(Snippet(page, line, kind, mark, block[3], after[3] if after is not None and follows else ""))
    return found


def completed(text: str) -> str:
    """A whole recipe around a part of one: sources a, b and c, and an output for each step."""
    if "mergeflow:" in text:
        return text
    steps = re.findall(r"^  (\w+):", text, re.MULTILINE) if text.startswith("steps:") else []
    head = "mergeflow: 1\n"
    if "sources:" not in text:
        head += "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
    if "outputs:" not in text:
        text += "outputs:\n" + "".join(f"  {step}.safetensors: {step}\n" for step in steps or "a")
    return head + text


def read(text: str, folder: Path) -> Recipe:
    return loads(completed(text), "mix.yaml", folder)


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=str)
def test_every_recipe_shown_can_be_built(snippet: Snippet, tmp_path: Path) -> None:
    with Project(read(snippet.text, tmp_path), settings(tmp_path)) as project:
        write_sources(project.bound, SD1_BLOCKS if "preset:" in snippet.text else None)
        result = project.build()
        assert len(result.outputs) == len(project.bound.outputs) > 0
        assert all(output.built for output in result.outputs)
        again = project.plan()
        assert [o.reason for o in again.outputs] == ["it is up to date"] * len(again.outputs)


@pytest.mark.parametrize("snippet", snippets("yaml", "error"), ids=str)
def test_every_error_shown_is_the_one_given(snippet: Snippet, tmp_path: Path) -> None:
    assert snippet.then, "the message stands in a text block after it"
    with pytest.raises(MergeflowError) as caught:
        plan_over_models(snippet.text, tmp_path)
    assert str(caught.value) == snippet.then.rstrip("\n")


def plan_over_models(text: str, folder: Path) -> None:
    with Project(loads(text, "mix.yaml", folder), settings(folder)) as project:
        write_sources(project.bound)
        project.plan()


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")], ids=lambda p: p.name
)
def test_the_python_shown_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a page in one go, each block with what the ones before it left; printed lines are compared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_registered", dict(registry.built_in()))  # what the page declares stays on the page
    for name in "abc":
        write_model(tmp_path / f"{name}.safetensors", SD1, seed=name)
    (tmp_path / "mix.yaml").write_text(
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\nparams: { m: 0.3 }\n"
        "outputs: { mix.safetensors: a + (b - c) * m }\n"
    )
    names: dict[str, object] = {}
    for snippet in (s for s in snippets("python") if s.page == page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(snippet.text, str(snippet), "exec"), names)
        assert printed.getvalue() == snippet.then, str(snippet)


def test_the_readme_commands_run_as_they_stand(tmp_path: Path) -> None:
    """The recipe of the README and its commands, literally, in a folder with four models."""
    page = ROOT / "README.md"
    (recipe,) = [s.text for s in snippets("yaml") if s.page == page]
    (tmp_path / "mix.yaml").write_text(recipe)
    for name in ("anything", "nai", "sfw", "gape"):
        write_model(tmp_path / f"{name}.safetensors", SD1, seed=name)
    lines = [line for s in snippets("sh") if s.page == page for line in s.text.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("mergeflow ")]
    assert [command[1] for command in commands] == ["plan", "build", "build", "explain", "merge"]
    answers = []
    for command in commands:
        if command[1] == "merge":
            before = (tmp_path / "mix.safetensors").read_bytes()
            (tmp_path / "mix.safetensors").unlink()
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        answers.append(done.stdout + done.stderr)
    assert "1·anything + 1·gape − 0.3·sfw − 0.7·nai" in answers[0]
    assert "up to date" in answers[2]
    assert (tmp_path / "mix.safetensors").read_bytes() == before, "the expression makes the same bytes as the recipe"


def test_what_is_generated_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "docs.generate", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_layers_of_the_architecture_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (shown,) = [block[3].split("\n")[:-1] for block in BLOCK.finditer(page) if block[3].startswith("cli\n")]
    assert shown == layers


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    everything = [
        *project["project"]["dependencies"],
        *(d for extra in project["project"]["optional-dependencies"].values() for d in extra),
        *project["dependency-groups"]["dev"],
    ]
    named = {re.split(r"[>=<]", dependency)[0] for dependency in everything}
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    lines = [re.findall(r"`([\w-]+)`", line.split("|")[1]) for line in page.splitlines() if line.startswith("| `")]
    assert sorted(name for line in lines for name in line) == sorted(named)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), target


def test_the_cache_page_is_of_this_format() -> None:
    page = (ROOT / "cache/README.md").read_text(encoding="utf-8")
    assert page.startswith(f"# The cache folder, format {records.FORMAT}\n")
    assert f"format `{records.FORMAT}` in `pragma user_version`" in page
    assert f"`memo-{memo.VERSION}.sqlite`" in page
    tables = re.findall(r"exists (\w+) \((.*?)\)(?: without rowid)?;", records._SCHEMA, re.DOTALL)
    assert [name for name, _ in tables] == re.findall(r"^## Table `(\w+)`", page, re.MULTILINE)
    for _, columns in tables:
        for column in re.findall(r"(\w+) (?:text|integer)", columns):
            assert re.search(rf"^\| .*`{column}`.* \|", page, re.MULTILINE), column


def test_the_changelog_is_about_this_version() -> None:
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:2] == "##")
    assert mergeflow.__version__ in first


def test_decisions_are_numbered_and_short() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]} ")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == ["Context", "Choice", "Refused", "What would change our mind"], page.name
        assert len(text.splitlines()) <= 60, page.name

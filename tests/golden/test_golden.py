"""The plans of all recipes in recipes/, word for word; and what somebody without the files is told."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_models import DIGITS, settings, write_model, write_sources

from mergeflow import Project
from mergeflow.build.storing import Shelf
from mergeflow.errors import MissingInput
from mergeflow.plan.cost import Rates
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.plan.program import COPY, ZERO
from mergeflow.plan.text import form_text
from mergeflow.recipe import load

HERE = Path(__file__).parent
RECIPES = sorted((HERE.parents[1] / "recipes").glob("*.yaml"))
UPDATE = "UPDATE_GOLDEN"


@pytest.fixture(autouse=True)
def a_usual_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is worth keeping depends on how fast the disk is, and that on what else the machine does."""
    monkeypatch.setattr(Shelf, "_rates", lambda self: Rates())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_plan_is_what_it_was(recipe: Path, tmp_path: Path) -> None:
    found = "\n".join(rendered(planned(recipe, tmp_path))) + "\n"
    golden = HERE / f"{recipe.stem}.txt"
    if os.environ.get(UPDATE):
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8"), f"{UPDATE}=1 pytest tests/golden accepts the change"


def test_there_is_no_plan_without_a_recipe() -> None:
    assert sorted(path.stem for path in HERE.glob("*.txt")) == [path.stem for path in RECIPES]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_without_the_files_one_is_told_which_goes_where(recipe: Path, tmp_path: Path) -> None:
    copy = copied(recipe, tmp_path)
    with Project(load(copy), settings(tmp_path)) as project:
        sources = project.bound.sources
        with pytest.raises(MissingInput) as caught:
            project.plan()
    error = caught.value
    first = sources[0]
    assert error.message == f"{first.path}: there is no such file"
    assert error.place is not None
    assert first.name in error.place.text
    assert f"--source {first.name}=PATH" in error.hint
    assert error.exit_code == 4


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.stem != "demo"], ids=lambda path: path.stem)
def test_the_comments_name_every_file(recipe: Path) -> None:
    comments = "\n".join(line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for source in load(recipe).sources.values():
        assert str(source.path) in comments
    assert f"mergeflow build recipes/{recipe.name}" in comments


def copied(recipe: Path, folder: Path) -> Path:
    copy = folder / "recipes" / recipe.name
    copy.parent.mkdir()
    shutil.copy(recipe, copy)
    return copy


def planned(recipe: Path, folder: Path) -> Plan:
    with Project(load(copied(recipe, folder)), settings(folder)) as project:
        if recipe.stem == "demo":
            for source in project.bound.sources:
                write_model(source.path, DIGITS, seed=source.name)
        write_sources(project.bound)
        return project.plan()


def rendered(plan: Plan) -> Iterator[str]:
    for fact in plan.facts.values():
        yield f"source {fact.name}: {len(fact.tensors)} tensors, {fact.architecture.name}, {fact.model}"
    for note in plan.notes:
        yield f"note: {note}"
    for output in plan.outputs:
        yield ""
        yield from rendered_output(plan, output)


def rendered_output(plan: Plan, output: OutputPlan) -> Iterator[str]:
    resolved = output.resolved
    yield f"output {output.path}: {output.reason}"
    yield f"  primary {plan.facts[resolved.primary].name}, {'a difference' if resolved.delta else 'a model'}"
    uses = Counter(resolved.cases)
    for case, form in enumerate(resolved.forms):
        yield f"  {form_text(form, lambda i: plan.facts[i].name)}, {uses[case]} tensors"
    kinds = Counter({COPY: "copied", ZERO: "zero"}.get(w.program, "computed") for w in output.works)
    yield f"  {len(output.works)} tensors: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
    yield f"  {output.layout.file_size} bytes, {output.bytes_read} to read"
    yield from (f"  warning: {warning}" for warning in output.warnings)
    yield f"  key {output.key}"
    for work in output.works:
        yield f"    {work.key} {work.name} {work.dtype.label} {list(work.shape)}"

"""What is told of an output beside it, on request: its statement and its card, once it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergeflow.events import Reporter
from mergeflow.plan.dependencies import dependencies
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.plan.webui import in_order
from mergeflow.provenance.card import card_text, is_card
from mergeflow.provenance.drawing import drawing_of
from mergeflow.provenance.statement import Made, Material, read_statement, statement_text
from mergeflow.recipe.shared import file_name, is_rooted, shared_overrides, shared_text
from mergeflow.sources.hashes import sha256
from mergeflow.sources.memo import Memo


def tell(
    kind: str, plan: Plan, output: OutputPlan, files: Mapping[str, str], model: str, memo: Memo, report: Reporter
) -> bytes:
    """The text of one of these. `files` are the sha256 of the output's files by name, `model` its digest."""
    recipe, declared = plan.bound.recipe, plan.bound.outputs[output.path][1]
    made = Made(
        file_name(output.path) if is_rooted(output.path) else output.path,
        files,
        model,
        output.layout.metadata,
        _materials(plan, output, memo, report),
        "" if declared.embed == "none" else shared_text(recipe),
        shared_overrides(recipe),
    )
    if kind == "provenance":
        return statement_text(made).encode()
    drawing = drawing_of(dependencies(plan.bound, plan.facts, [output]))
    return card_text(made, recipe, output.resolved.architecture.name, drawing, output.snapshot.form).encode()


def is_told(kind: str, path: Path) -> bool:
    """Whether mergeflow wrote this file as it is."""
    return read_statement(path) is not None if kind == "provenance" else is_card(path)


def _materials(plan: Plan, output: OutputPlan, memo: Memo, report: Reporter) -> list[Material]:
    """The sources that are in the output, its first model first. Reads their files for their sha256, once."""
    found = []
    for i in in_order(output.resolved, plan.facts):
        facts, declared = plan.facts[i], plan.bound.sources[i].declared
        whole = sha256(facts.files[0], memo, report) if len(facts.files) == 1 else ""
        found.append(Material(facts.name, facts.model, whole, declared.url or "", declared.license or ""))
    return found

"""The page of a recipe: what is made of what, with everything that a plan says of it and that records say of the last
build. No path of this machine is on it: files are called as the recipe calls them, sources by their file names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mergeflow.cli.describe import describe
from mergeflow.cli.layered import layered_svg
from mergeflow.cli.page import Page, cells
from mergeflow.cli.picture import svg
from mergeflow.cli.text import listed, plural, seconds
from mergeflow.provenance.drawing import Box, Drawing, drawing_of
from mergeflow.recipe.shared import file_name, shared_overrides, shared_text
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.build.compare import Comparison
    from mergeflow.plan.plans import OutputPlan, Plan
    from mergeflow.store.records import Records

Changes = Callable[["OutputPlan"], "Comparison | None"]


def plan_page(plan: Plan, records: Records, changes: Changes) -> str:
    """`changes` compares an output with its first model, or gives None where that is not asked for or not possible."""
    recipe, data = plan.bound.recipe, describe(plan)
    page = Page(recipe.name or (recipe.path.name if recipe.path else "a merge"), recipe.description or "")
    if recipe.overrides:
        page.text(f"Built with {', '.join(shared_overrides(recipe))}.", "soft")
    links = {name: f"n{i}" for i, name in enumerate(plan.graph)}
    page.picture(layered_svg(_drawing(plan, data), links))
    page.heading("Outputs")
    told: set[str] = set()
    for output, said in zip(plan.outputs, data["outputs"], strict=True):
        name = output.path if output.path in links else said["template"]
        anchor = links[name] if name not in told else f"{links[name]}-{output.path}"
        told.add(name)
        _output(page, anchor, output, said, records, changes(output))
    page.heading("Sources")
    _sources(page, plan, data, links)
    _params(page, data)
    _steps(page, data, links)
    if recipe.text:
        page.heading("Recipe")
        page.code(shared_text(recipe))
    return page.html()


def _drawing(plan: Plan, data: Mapping[str, Any]) -> Drawing:
    drawing = drawing_of(plan.graph)
    notes = {source["name"]: source["digest"][:15] for source in data["sources"]}
    notes |= {step["name"]: step["forms"][0]["form"] for step in data["steps"] if step["forms"]}
    for output in data["outputs"]:
        notes[output["path"]] = output["forms"][0]["form"] if output["forms"] else ""
        if output["template"] not in notes:  # a sweep's
            notes[output["template"]] = plural(
                sum(o["template"] == output["template"] for o in data["outputs"]), "file"
            )
    labels = {b.name: "\n".join(filter(None, (b.label, notes.get(b.name, "")))) for b in drawing.boxes}
    return Drawing([Box(b.name, b.kind, labels[b.name], b.bold) for b in drawing.boxes], drawing.arrows)


def _output(
    page: Page, anchor: str, output: OutputPlan, said: Mapping[str, Any], records: Records, changes: Comparison | None
) -> None:
    record = records.find(output.target)
    forms = [f"{form['form']}" + (f"  ({plural(form['tensors'], 'tensor')})" if len(said["forms"]) > 1 else "")
             for form in said["forms"][:12]]  # fmt: skip
    facts = [
        ("state", f"to be built: {output.reason}" if output.build else output.reason.removeprefix("it is ")),
        *(("" if i else "is", f"`{form}") for i, form in enumerate(forms)),
        ("", f"and {len(said['forms']) - 12:,} more forms" if len(said["forms"]) > 12 else ""),
        ("first model", said["primary"]),
        ("tensors", ", ".join(f"{n:,} {how}" for how, n in said["tensors"].items())),
        ("dtypes", ", ".join(said["dtypes"])),
        ("size", human_bytes(output.layout.file_size)),
        ("digest", f"`{record.model}" if record is not None and not output.build else ""),
        ("key", f"`{output.key}"),
        ("last build", _last_build(record.snapshot.get("made")) if record is not None else ""),
        ("reused now", "; ".join(f"{k['tensors']} of {file_name(str(k['file']))}" for k in said["kept"])),
        ("values", ", ".join(f"{name} = {value}" for name, value in said["sweep"].items())),
        ("warnings", listed(said["warnings"], 4)),
    ]
    more = []
    if changes is not None:
        more = ['<p class="soft">How much each block differs from its first model:</p>', '<div class="wide">',
                svg(output.path, changes.blocks(), inline=True), "</div>"]  # fmt: skip
    page.card(anchor, output.path, facts, more)


def _last_build(made: Mapping[str, Any] | None) -> str:
    """What its record says of the building: `published.made_now`."""
    if not made:
        return ""
    counts = [f"{made[what]:,} {what}" for what in ("computed", "copied", "reused") if made.get(what)]
    reused = f" ({human_bytes(made['bytes_reused'])})" if made.get("reused") else ""
    when = str(made["at"]).replace("T", " ").removesuffix("+00:00")
    return f"{when} UTC, in {seconds(made['seconds'])}: {', '.join(counts)}{reused}"


def _sources(page: Page, plan: Plan, data: Mapping[str, Any], links: Mapping[str, str]) -> None:
    for (number, facts), source in zip(plan.facts.items(), data["sources"], strict=True):
        ref = plan.bound.sources[number]
        page.card(
            links.get(source["name"], f"s{number}"),
            source["name"],
            [
                ("file", file_name(str(facts.files[-1]))),
                ("digest", f"`{source['digest']}"),
                ("tensors", f"{source['tensors']:,}, {human_bytes(source['bytes'])}, {', '.join(source['dtypes'])}"),
                ("architecture", source["architecture"]),
                ("kind", source["kind"]),
                ("from", ref.declared.url or ""),
                ("licence", ref.declared.license or ""),
                ("note", ref.declared.note or ""),
            ],
        )


def _params(page: Page, data: Mapping[str, Any]) -> None:
    if data["params"] or data["profiles"]:
        page.heading("Params")
    if data["params"]:
        page.table(("param", "value"), [(name, value) for name, value in data["params"].items()])
    for number, (name, table) in enumerate(data["profiles"].items()):
        rows = [f"{row['selector']}: {row['value']} ({plural(row['tensors'], 'tensor')})" for row in table["selectors"]]
        facts = [("preset", table["preset"] or ""), ("selectors", "; ".join(rows))]
        page.card(f"p{number}", name, facts, [cells(table["blocks"])] if table["blocks"] else [])


def _steps(page: Page, data: Mapping[str, Any], links: Mapping[str, str]) -> None:
    if data["steps"]:
        page.heading("Steps")
    for step in data["steps"]:
        facts = [("is", f"`{form['form']}" + (f"  {form['where']}" if form["where"] else "")) for form in step["forms"]]
        facts.append(("the same as", step["same_as"] or ""))
        page.card(links.get(step["name"], ""), step["name"], facts)

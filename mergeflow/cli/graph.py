"""`mergeflow graph`: what is made of what, as text, for a program that draws, or as a page: of a recipe as it is
planned, of model files as they say themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, json_text, table

if TYPE_CHECKING:
    from mergeflow.build.compare import Comparison
    from mergeflow.build.lineage import Ancestor
    from mergeflow.plan.plans import OutputPlan, Plan
    from mergeflow.provenance.drawing import Drawing

SCHEMA, SCHEMA_LINEAGE = "mergeflow/dependencies/1", "mergeflow/lineage/1"
_FORMS = ["text", "dot", "mermaid", "html", "json"]
_MODELS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".safetensors.index.json")


@click.command()
@click.argument("names", nargs=-1, metavar="[RECIPE] [OUTPUT]... | FILE...")
@click.option("--format", "form", type=click.Choice(_FORMS), default="text", help="html: a page that stands alone.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write it there; one that ends in .html is a page.")  # fmt: skip
@click.option("--changes", is_flag=True,
              help="On a page: how much each block differs from the first model. Reads both files.")  # fmt: skip
@click.option("--models", multiple=True, type=click.Path(file_okay=False, exists=True, path_type=Path),
              metavar="FOLDER", help="Search this folder for what FILE came from, by content.")  # fmt: skip
@options.recipe_options
@options.folder_options
@options.json_option
@options.debug_option
def command(
    names: tuple[str, ...], form: str, out: Path | None, changes: bool, models: tuple[Path, ...], as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Draw what each step and output of RECIPE is made of; or of model files that mergeflow made, what they came from,
    and what that came from.

    A FILE says what it was made of, by the digests of the models. These are looked for among the files beside it, in
    the current folder, in the machine's model folders, and in those of --models; in the latter, files that are new to
    this machine are read.

    \b
    mergeflow graph --format dot | dot -Tsvg > graph.svg
    mergeflow graph mix.safetensors
    mergeflow graph mix.safetensors --changes -o mix.html
    """
    form = "json" if as_json else "html" if out is not None and out.suffix.lower() in (".html", ".htm") else form
    if changes and form != "html":
        raise click.UsageError("--changes is for a page: add --format html, or -o FILE.html")
    files = bool(names) and all(name.lower().endswith(_MODELS) and Path(name).is_file() for name in names)
    if models and not files:
        raise click.UsageError("--models is for what model files came from: name some that are there")
    if files:
        text = _of_files([Path(name) for name in names], models, form, changes)
    else:
        text = _of_recipe(names, form, changes, given)
    if out is None:
        echo(text)
        return
    from mergeflow.formats.parts import write_text_file

    write_text_file(out, text.rstrip("\n") + "\n")
    echo(f"drawn: {out}", err=True)


# -- of a recipe -----------------------------------------------------------------------------------------------------


def _of_recipe(names: tuple[str, ...], form: str, changes: bool, given: dict[str, Any]) -> str:
    from mergeflow.provenance.drawing import drawing_of

    with Screen(brief=form == "html") as screen:
        project, outputs = options.open_project(names, screen, **given)
        with project:
            plan = project.plan(outputs)
            if form == "html":
                from mergeflow.cli.planpage import plan_page

                return plan_page(plan, project.records, lambda output: _changed(plan, output, screen, changes))
    if form == "json":
        nodes = [{"name": name, **data} for name, data in plan.graph.nodes(data=True)]
        return json_text(SCHEMA, nodes=nodes, edges=[{"from": a, "to": b} for a, b in plan.graph.edges])
    return _drawn(drawing_of(plan.graph), form)


def _changed(plan: Plan, output: OutputPlan, screen: Screen, asked: bool) -> Comparison | None:
    """How an output that is up to date differs from its first model."""
    if not asked or output.build:
        return None
    return _compared(plan.bound.sources[output.resolved.primary].path, output.target, screen)


def _compared(one: Path, other: Path, screen: Screen) -> Comparison:
    from mergeflow.build.compare import compare
    from mergeflow.build.machine import budget
    from mergeflow.sources.identify import identify
    from mergeflow.sources.memo import Memo, default_folder

    cores = budget(1).cores
    with closing(Memo(default_folder(), screen.warn)) as memo:
        a, b = (identify(file, memo, screen, workers=cores) for file in (one, other))
        return compare(a, b, report=screen, workers=cores)


def _drawn(drawing: Drawing, form: str) -> str:
    from mergeflow.provenance.drawing import dot, mermaid

    return "\n".join({"text": _text, "dot": dot, "mermaid": mermaid}[form](drawing))


def _text(drawing: Drawing) -> Iterator[str]:
    rows = []
    for box in drawing.boxes:
        made_of = ", ".join(drawing.made_of(box.name))
        rows.append((box.kind, box.name, f"← {made_of}" if made_of else ""))
    yield from table(rows, indent="")


# -- of files --------------------------------------------------------------------------------------------------------


def _of_files(files: list[Path], models: tuple[Path, ...], form: str, changes: bool) -> str:
    from mergeflow.build.ancestors import Shelves
    from mergeflow.build.lineage import follow
    from mergeflow.build.machine import budget
    from mergeflow.cli.lineagepage import described, drawing, lineage_page, tree
    from mergeflow.sources.memo import Memo, default_folder

    with Screen(brief=True) as screen, closing(Memo(default_folder(), screen.warn)) as memo:
        looked = [*(file.parent for file in files), Path()]
        lineage = follow(files, Shelves(models, looked, memo, screen, workers=budget(1).cores))

        def changed(file: Ancestor) -> Comparison | None:
            first = lineage.files.get(file.making.primary) if file.making is not None else None
            if not changes or first is None or first.path is None or file.path is None:
                return None
            return _compared(first.path, file.path, screen)

        if form == "html":
            return lineage_page(lineage, changed)
    if form == "json":
        return json_text(SCHEMA_LINEAGE, files=described(lineage))
    return "\n".join(tree(lineage)) if form == "text" else _drawn(drawing(lineage), form)

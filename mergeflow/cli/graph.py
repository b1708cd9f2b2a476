"""`mergeflow graph`: what is made of what, as text or for a program that draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import print_json, table

if TYPE_CHECKING:
    import networkx as nx

SCHEMA = "mergeflow/dependencies/1"
_DOT_SHAPES = {"source": "cylinder", "step": "ellipse", "output": "box"}
_MERMAID_SHAPES = {"source": "[({})]", "step": "({})", "output": "[{}]"}


@click.command()
@options.recipe_argument
@click.option("--format", "form", type=click.Choice(["text", "dot", "mermaid", "json"]), default="text")
@options.recipe_options
@options.folder_options
@options.json_option
@options.debug_option
def command(names: tuple[str, ...], form: str, as_json: bool, **given: Any) -> None:
    """Draw what each step and output of RECIPE is made of.

    \b
    mergeflow graph --format dot | dot -Tsvg > graph.svg
    """
    with Screen() as screen:
        project, outputs = options.open_project(names, screen, **given)
        with project:
            graph = project.plan(outputs).graph
    if as_json or form == "json":
        nodes = [{"name": name, **data} for name, data in graph.nodes(data=True)]
        print_json(SCHEMA, nodes=nodes, edges=[{"from": a, "to": b} for a, b in graph.edges])
    else:
        click.echo("\n".join({"text": _text, "dot": _dot, "mermaid": _mermaid}[form](graph)))


def _text(graph: nx.DiGraph[str]) -> Iterator[str]:
    rows = []
    order = {name: i for i, name in enumerate(graph)}
    for name, data in graph.nodes(data=True):
        made_of = ", ".join(sorted(graph.predecessors(name), key=order.__getitem__))
        rows.append((data["kind"], name, f"← {made_of}" if made_of else ""))
    yield from table(rows, indent="")


def _dot(graph: nx.DiGraph[str]) -> Iterator[str]:
    yield "digraph mergeflow {"
    yield "  rankdir=LR;"
    for name, data in graph.nodes(data=True):
        style = ", style=bold" if data.get("build") else ""
        yield f"  {_quoted(name)} [shape={_DOT_SHAPES[data['kind']]}{style}];"
    for a, b in graph.edges:
        yield f"  {_quoted(a)} -> {_quoted(b)};"
    yield "}"


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _mermaid(graph: nx.DiGraph[str]) -> Iterator[str]:
    number = {name: f"n{i}" for i, name in enumerate(graph)}
    yield "graph LR"
    for name, data in graph.nodes(data=True):
        label = "".join(f"#{ord(c)};" if c in '"#&;<>`' else c for c in name)
        shape = _MERMAID_SHAPES[data["kind"]].format(f'"{label}"')
        yield f"  {number[name]}{shape}"
    for a, b in graph.edges:
        yield f"  {number[a]} --> {number[b]}"

"""`mergeflow inspect`: what a file holds, from its header alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from mergeflow.cli import options
from mergeflow.cli.kinds import kind_rows, told_kind
from mergeflow.cli.text import echo, listed, plural, print_json, table
from mergeflow.tensors import TensorSpec, human_bytes

SCHEMA = "mergeflow/inspect/1"
LONGEST = 300  # characters shown of one metadata value


@click.command(no_args_is_help=True)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List all tensors.")
@options.json_option
@options.debug_option
def command(file: Path, tensors: bool, as_json: bool) -> None:
    """Show what FILE holds: size, dtypes, architecture, components, metadata; of a file that mergeflow made, what it is
    the result of. Only the header is read.
    """
    data = look(file)
    if as_json:
        print_json(SCHEMA, **data)
    else:
        echo("\n".join(_lines(data, tensors)))


def look(file: Path) -> dict[str, Any]:
    """All that the header says and implies."""
    from mergeflow.arch import understand, variant
    from mergeflow.formats.contents import read_contents
    from mergeflow.plan.embed import DIGEST, GRAPH
    from mergeflow.provenance.claims import claims_of

    contents = read_contents(file)
    stored = list(contents.tensors.values())
    header = understand({t.name: t.shape for t in stored}, contents.other, contents.extras)
    architecture, aliases = header.architecture, header.aliases
    renamed = [aliases.get(t.name) for t in stored]
    specs = [
        TensorSpec(a.name if a else t.name, t.dtype, a.shape if a else t.shape, t.start)
        for t, a in zip(stored, renamed, strict=True)
    ]
    special, _ = variant({t.name: t.shape for t in specs})
    metadata = dict(claims_of(file, contents.metadata))
    return {
        "file": str(file),
        "container": contents.container,
        "files": len(contents.files),
        "kind": told_kind(header.kind),
        "variant": special,
        "renamed": len(aliases),
        "extras": dict(contents.extras),
        "bytes": sum(path.stat().st_size for path in contents.files),
        "parameters": sum(t.elements for t in specs),
        "dtypes": _sums((t.dtype.label, t) for t in specs),
        "architecture": architecture.name,
        "architecture_title": architecture.title,
        "architecture_reason": header.reason,
        "components": _sums((architecture.component(t.name) or "(none)", t) for t in specs)
        if architecture.component_names
        else {},
        "digest": metadata.pop(DIGEST, None),
        "made_of": _graph(metadata.pop(GRAPH, "")),
        "metadata": metadata,
        "tensors": [
            {"name": t.name, "dtype": t.dtype.label, "shape": list(t.shape), "bytes": t.nbytes, "offset": t.start}
            for t in specs
        ],
    }


def _sums(labelled: Iterator[tuple[str, TensorSpec]]) -> dict[str, dict[str, int]]:
    """Tensors and bytes under each label, the largest first."""
    tensors, nbytes = Counter[str](), Counter[str]()
    for label, spec in labelled:
        tensors[label] += 1
        nbytes[label] += spec.nbytes
    return {label: {"tensors": tensors[label], "bytes": n} for label, n in nbytes.most_common()}


def _graph(text: str) -> dict[str, Any] | None:
    """The embedded normal forms; None where there are none that this version can read."""
    from mergeflow.plan.embed import SCHEMA as GRAPH_SCHEMA
    from mergeflow.plan.embed import SCHEMA_APPLIED

    try:
        graph = json.loads(text)
        known = graph["schema"] in (GRAPH_SCHEMA, SCHEMA_APPLIED)
    except (ValueError, TypeError, KeyError):
        return None
    return graph if known else None


def _lines(data: dict[str, Any], tensors: bool) -> Iterator[str]:
    yield data["file"]
    count = len(data["tensors"])
    size = f"{human_bytes(data['bytes'])} ({data['bytes']:,} bytes)"
    title = data["architecture_title"] if data["components"] else data["architecture"]
    facts = [
        ("format", data["container"] + (f", {data['files']} files" if data["files"] > 1 else "")),
        ("size", size),
        ("tensors", f"{count:,}, {_short(data['parameters'])} parameters"),
        ("dtypes", _shares(data["dtypes"])),
        ("architecture", f"{title}: {data['architecture_reason']}"),
    ]
    facts += kind_rows(data["kind"])
    if data["variant"]:
        facts.append(("variant", data["variant"]))
    if data["renamed"]:
        facts.append(("names", f"{data['renamed']:,} tensors are called otherwise in the file"))
    if data["digest"]:
        facts.append(("digest", f"{data['digest']} (as claimed; `mergeflow verify` checks it)"))
    yield from table(facts)
    if data["components"]:
        yield from ("", "components")
        rows = [(n, plural(c["tensors"], "tensor"), human_bytes(c["bytes"])) for n, c in data["components"].items()]
        yield from table(rows, right=(1, 2))
    if data["made_of"]:
        yield from ("", "made by mergeflow")
        yield from _made_of(data["made_of"], count)
    if data["metadata"]:
        yield from ("", "metadata")
        yield from table((name, _clipped(value)) for name, value in data["metadata"].items())
    if tensors:
        yield from ("", "tensors")
        yield from table(
            ((t["dtype"], "×".join(map(str, t["shape"])) or "scalar", human_bytes(t["bytes"]), t["name"])
             for t in data["tensors"]),
            right=(2,),
        )  # fmt: skip


def _made_of(graph: Mapping[str, Any], count: int) -> Iterator[str]:
    """The normal forms with a short name for each source, and which file each of them is."""
    from mergeflow.plan.text import join_terms

    forms: list[Any] = graph["forms"]
    leaves = list(dict.fromkeys(name for form in forms for _, name in form.get("terms", ())))
    label = {digest: f"s{i}" for i, digest in enumerate((n for n in leaves if n.startswith("b3:")), 1)}
    rounded = {name: f"r{i}" for i, name in enumerate((n for n in leaves if n.startswith("round ")), 1)}
    applied = {name: f"m{i}" for i, name in enumerate((n for n in leaves if n.startswith("apply ")), 1)}
    short_for = {**label, **rounded, **applied}

    def shown(number: int) -> str:
        over = int(forms[number]["over"])
        return join_terms([(Fraction(int(n), over), short_for.get(name, name)) for n, name in forms[number]["terms"]])

    others: dict[str, list[str]] = graph.get("others", {})
    usual = count - sum(map(len, others.values()))
    rows = [(plural(usual, "tensor"), f"= {shown(graph['form'])}")]
    for n, names in others.items():
        rows.append((plural(len(names), "tensor"), f"= {shown(int(n))}  ({listed(names, 1)})"))
    for name, short in rounded.items():
        _, dtype, inner = name.split(" ")
        rows.append((short, f"= {shown(int(inner))}, rounded to {dtype}"))
    rows += [(short, f"= {_call(forms[int(name.split(' ')[1])], shown)}") for name, short in applied.items()]
    if "policy" in graph:
        rows.append((f"policy {graph['policy']}", "each step rounded in its tensors' own dtypes"))
    yield from table(rows)
    first = graph["primary"]
    sources = [(name, digest, "the first model" if digest == first else "") for digest, name in label.items()]
    yield from table(sources, limit=80)


def _call(entry: Mapping[str, Any], shown: Callable[[int], str]) -> str:
    """An applied method: its operands, with weights that are not 1, and its arguments."""
    operands = [shown(n) if weight == "1" else f"({shown(n)}) @ {weight}" for weight, n in entry["to"]]
    rest = {key: value for key, value in entry.items() if key not in ("apply", "version", "source", "to")}
    arguments = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in rest.items()]
    return f"{entry['apply']}({', '.join([*operands, *arguments])})"


def _short(n: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:,}"


def _shares(sums: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(
        f"{label} ({plural(s['tensors'], 'tensor')}, {human_bytes(s['bytes'])})" for label, s in sums.items()
    )


def _clipped(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}… ({len(value):,} characters)"

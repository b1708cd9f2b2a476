"""`mergeflow methods`: the merge methods that there are, or one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import complete, options
from mergeflow.cli.text import echo, print_json, table
from mergeflow.errors import MergeflowError

if TYPE_CHECKING:
    from mergeflow.ir.kernels import Kernel
    from mergeflow.methods.registry import Method, Parameter

SCHEMA = "mergeflow/methods/1"
_TAKES = {
    "Model": "a model",
    "Delta": "a difference of models",
    "Models": "a list of models, with weights: a @ 0.5",
    "Deltas": "a list of differences of models, with weights: (a - base) @ 0.5",
    "bool": "true or false",
}
_ACCESS = {
    "elementwise": "value by value",
    "two_phase": "goes through a tensor before it computes a value of it",
    "tensor": "on whole tensors, in memory",
}


@click.command()
@click.argument("name", required=False, shell_complete=complete.methods)
@options.json_option
@options.debug_option
def command(name: str | None, as_json: bool) -> None:
    """List the merge methods, or show NAME, which may be of an installed plugin."""
    from mergeflow.methods.registry import built_in, find, of_plugins

    if name:
        method = find(name)
        if as_json:
            print_json(SCHEMA, methods=[_entry(method)])
        else:
            echo("\n".join(page(method)))
        return
    methods, plugins = built_in(), list(of_plugins())
    if as_json:
        found = [entry for _, entry in plugins if not isinstance(entry, MergeflowError)]
        wrong = [{"name": key, "error": str(entry)} for key, entry in plugins if isinstance(entry, MergeflowError)]
        print_json(SCHEMA, methods=[_entry(method) for method in (*methods.values(), *found)], errors=wrong)
        return
    lines = [(key, method.formula) for key, method in methods.items()]
    lines += [(key, _offered(method)) for key, method in plugins]
    width = max(len(key) for key, _ in lines)
    echo("\n".join(f"{key:{width}}  {text}" for key, text in lines))


def _offered(found: Method | MergeflowError) -> str:
    from mergeflow.methods.registry import origin_of

    return found.message if isinstance(found, MergeflowError) else f"{found.formula} ({origin_of(found)})"


def _entry(method: Method) -> dict[str, Any]:
    from mergeflow.methods.registry import origin_of

    return {
        "name": method.name,
        "from": origin_of(method),
        "signature": method.signature,
        "formula": method.formula,
        "tier": method.tier,
        "parameters": [_parameter(p) for p in method.parameters],
        "kernels": [{"name": k.name, "version": k.version, "access": k.access} for k in method.kernels],
        "examples": list(method.examples),
        "doc": method.doc,
    }


def _parameter(p: Parameter) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": p.name, "kind": p.kind, "required": p.required, "takes": _takes(p)}
    if not p.required:
        entry["default"] = p.shown
    return entry


def _takes(p: Parameter) -> str:
    if p.kind == "choice":
        return " or ".join(p.choices)
    if p.kind == "Number":
        return str(p.range) if p.range else "a number"
    return _TAKES[p.kind]


def page(method: Method) -> Iterator[str]:
    """Its signature, documentation, parameters, what it is made of and how reproducible it is."""
    yield from (method.signature, "", method.doc, "")
    yield from table((p.name, _takes(p), "" if p.required else f"{p.shown} unless given") for p in method.parameters)
    yield ""
    for kernel in method.kernels:
        yield f"made of {kernel.name}, version {kernel.version}: {_ACCESS[kernel.access]}{_drawn(kernel)}"
    if not method.kernels:
        yield "a sum, or one term of one: fused with the sums around it"
    yield f"memory: {_memory(method)}"
    yield f"reproducible: {method.tier}"


def _memory(method: Method) -> str:
    """What a tensor of it takes, whatever takes most."""
    from mergeflow.methods.rooms import room_of

    rooms = [room_of(k.name, (1024, 1024)) >> 20 for k in method.kernels if k.access == "tensor"]
    if rooms:
        more = f", and {max(rooms)} bytes a value besides (of a square matrix)" if max(rooms) else ""
        return f"whole tensors in float32 or float64, operands and result{more}"
    return "a few tiles of 65,536 values for each worker, however large tensors are; more saves reading them again"


def _drawn(kernel: Kernel) -> str:
    return "; random, by the seed and the tensor's name" if kernel.random else ""

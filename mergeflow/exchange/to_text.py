"""A recipe in words: a numbered list for a wiki or a model's page. Only the files' names are shown, no folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from mergeflow.errors import UnknownName
from mergeflow.exchange.draft import one_line
from mergeflow.exchange.outline import Exported
from mergeflow.plan.bind import bind
from mergeflow.recipe import Expression, Output, Param, Recipe, Source, Step
from mergeflow.recipe.expression import spell


def export(recipe: Recipe, wanted: str | None) -> Exported:
    """All of it, or what the output `wanted` needs.

    Raises:
        RecipeError: the recipe does not hold together, or there is no such output.
    """
    bind(recipe)
    names = {path: (None, path, PurePosixPath(path).name) for path in recipe.outputs}
    outputs = {path: output for path, output in recipe.outputs.items() if wanted in names[path]}
    if not outputs:
        raise UnknownName("output", wanted or "", recipe.outputs)
    used = _used(recipe, list(outputs.values()))
    lines = [recipe.name or PurePosixPath(next(iter(outputs))).name]
    lines += [one_line(line) for line in (recipe.description or "").splitlines()]
    lines += ["", "Models:"]
    lines += [f"- {name}: {_source(source)}" for name, source in recipe.sources.items() if name in used]
    params = [(name, param) for name, param in recipe.params.items() if name in used]
    if params:
        lines += ["", "Numbers:", *(f"- {name}: {_param(param)}" for name, param in params)]
    lines += ["", "Steps:"]
    items = [f"{name} = {_step(step)}" for name, step in _in_order(recipe) if name in used]
    items += [_output(path, output) for path, output in outputs.items()]
    lines += [f"{n}. {item}" for n, item in enumerate(items, 1)]
    return Exported("\n".join(lines) + "\n", ())


def _used(recipe: Recipe, outputs: list[Output]) -> set[str]:
    """The names that these outputs lead to."""
    found: set[str] = set()
    waiting = [name for output in outputs for name in _names(output)]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in recipe.steps:
            waiting += _names(recipe.steps[name])
        if name in recipe.params:
            waiting += [n for e in recipe.params[name].expressions for n in e.names]
    return found


def _names(part: Step | Output) -> Iterator[str]:
    expressions: list[Expression | None] = [part.expr, *part.replace.values()]
    expressions += part.arguments.values() if isinstance(part, Step) else ()
    for expression in expressions:
        yield from expression.names if expression is not None else ()
    if part.like:
        yield part.like


def _in_order(recipe: Recipe) -> Iterator[tuple[str, Step]]:
    """The steps, each after those that it uses."""
    done: set[str] = set()
    stack: list[tuple[str, bool]] = [(name, False) for name in reversed(recipe.steps)]
    while stack:
        name, expanded = stack.pop()
        if name in done:
            continue
        if expanded:
            done.add(name)
            yield name, recipe.steps[name]
            continue
        stack.append((name, True))
        stack += [(used, False) for used in _names(recipe.steps[name]) if used in recipe.steps and used not in done]


def _source(source: Source) -> str:
    if source.many:
        return "; ".join(map(_source, source.many))
    if source.recipe is not None:
        return f"the step {source.step} of {PurePosixPath(source.recipe).name}"
    named = source.path or source.url
    told = [PurePosixPath(named.replace("\\", "/")).name] if named else []
    told += [f"sha256 {source.sha256}"] if source.sha256 else []
    told += [f"hash {source.hash}"] if source.hash else []
    told += [f"as a {source.kind}"] if source.kind else []
    told += [f"ema: {source.ema}"] if source.ema else []
    return ", ".join(told)


def _param(param: Param) -> str:
    if param.sweep:
        return "each of " + ", ".join(f"{v.label} ({_param(v)})" if v.label else _param(v) for v in param.sweep)
    if param.value is not None:
        return _expression(param.value)
    told = []
    if param.listed is not None:
        told.append(param.listed.preset or param.listed.mbw or "")
    if param.default is not None:
        told.append(f"{_expression(param.default)} unless said below")
    for entry in param.profile:
        numbers = " … ".join(map(_expression, entry.numbers))
        told.append(f"{one_line(entry.selector)}: {numbers}")
    return "; ".join(told)


def _step(step: Step) -> str:
    text = _expression(step.expr) if step.expr is not None else _call(step)
    told = [text, *_options(step)]
    told += [f"rounded to {step.round.label}"] if step.round is not None else []
    return ", ".join(told)


def _call(step: Step) -> str:
    arguments = ", ".join(f"{name}={_expression(value)}" for name, value in step.arguments.items())
    return f"{step.method}({arguments})"


def _output(path: str, output: Output) -> str:
    told = [f"Save {_expression(output.expr)} as {PurePosixPath(path).name}", *_options(output)]
    told += [f"in {output.dtype.label}"] if output.dtype is not None else []
    told += [f"{selector} in {dtype.label}" for selector, dtype in output.dtypes.items()]
    told += [f"{key} {', '.join(words)}" for key in ("only", "drop", "fix", "mark") if (words := getattr(output, key))]
    return ", ".join(told)


def _options(part: Step | Output) -> Iterator[str]:
    for component, expression in part.replace.items():
        yield f"with the {component} of {_expression(expression)}"
    if part.like:
        yield f"with the tensors of {spell(part.like)}"


def _expression(expression: Expression) -> str:
    """As it was typed, on one line."""
    return " ".join(expression.text.split())

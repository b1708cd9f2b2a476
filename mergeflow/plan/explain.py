"""Why an output is built, or is not: one line, decided by comparing what was built with what is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mergeflow.digest import NUMERICS
from mergeflow.ir.forms import kernels_in
from mergeflow.ir.kernels import Kernel
from mergeflow.ir.numbers import decimal
from mergeflow.plan.bound import Bound
from mergeflow.plan.facts import Facts, SourceFacts
from mergeflow.plan.profiles import RANGE, Table
from mergeflow.plan.resolve import Resolved, sources_of
from mergeflow.plan.text import form_text
from mergeflow.recipe import Expression, Output, Param, Recipe
from mergeflow.tensors import human_bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an output was made from, in the recipe's words: kept with the record of the file, only to explain."""

    numerics: int
    params: Mapping[str, str]
    sources: Mapping[str, str]
    form: str
    dtype: str
    compute: str
    metadata: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, Mapping[str, str]]]  # rows (selector: value), numbers, blocks (block: value)
    policy: str = "exact"
    container: str = "one file"
    metadata_for: Sequence[str] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)  # what is no sum: name and version
    seed: str = ""  # where it matters
    arguments: Mapping[str, str] = field(default_factory=dict)  # of kernels: ties_trim.density, "0.2"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Found:
    """The state of an output's file. `intact`: its content is what some build of ours wrote. `key`: of that build,
    where it is known; `snapshot`: what that build was made from; `changed`: the tensors that it does not hold as they
    would be built now, where that is known."""

    exists: bool = False
    intact: bool = False
    key: str | None = None
    snapshot: Mapping[str, Any] | None = None
    changed: Sequence[str] | None = None


def snapshot(bound: Bound, path: str, resolved: Resolved, facts: Facts) -> Snapshot:
    node, output = bound.outputs[path]
    used = {facts[i].name: facts[i].model for i in sorted(sources_of([node]))}
    point = bound.points[path]
    mentioned = _mentioned(bound.recipe, output, point.params)
    numbers = {**bound.numbers, **point.numbers}
    params = {name: decimal(value) for name, value in sorted(numbers.items()) if name.split("/", 1)[0] in mentioned}
    usual = max(range(len(resolved.forms)), key=resolved.cases.count) if resolved.forms else 0
    form = form_text(resolved.forms[usual], lambda i: facts[i].name) if resolved.forms else "0"
    return Snapshot(
        NUMERICS,
        params,
        used,
        form,
        output.dtype.label if output.dtype else "as the first model",
        str(bound.recipe.options.compute),
        dict(sorted(output.metadata.items())),
        {bound.profiles[key].name: _profile(table) for key, table in sorted(resolved.tables.items())},
        bound.recipe.options.policy,
        f"shards of {human_bytes(output.shard_size)}" if output.shard_size else "one file",
        sorted(output.metadata_for),
        {leaf.kernel.name: _version(leaf.kernel) for form in resolved.forms for leaf in kernels_in(form)},
        _seed(bound, resolved),
        _arguments(resolved),
    )


def _version(kernel: Kernel) -> str:
    return f"version {kernel.version}" + (f" of {kernel.origin[:12]}" if kernel.origin else "")


def _seed(bound: Bound, resolved: Resolved) -> str:
    """The recipe's seed, if a kernel draws from it."""
    leaves = (leaf for form in resolved.forms for leaf in kernels_in(form))
    drawn = any(leaf.kernel.random and "seed" not in dict(leaf.arguments) for leaf in leaves)
    return str(bound.recipe.options.seed) if drawn else ""


def _arguments(resolved: Resolved) -> dict[str, str]:
    """What kernels are applied with, by kernel and name; a list where it is not the same everywhere."""
    found: dict[str, dict[str, None]] = {}
    for leaf in (leaf for form in resolved.forms for leaf in kernels_in(form)):
        given = [*((name, decimal(value)) for name, value in leaf.arguments), *leaf.options]
        weights = [("weights", " ".join(map(decimal, leaf.weights)))] if leaf.weights else []
        for name, value in (*given, *weights):
            text = str(value).lower() if isinstance(value, bool) else value
            found.setdefault(f"{leaf.kernel.name}.{name}", {})[text] = None
    return {name: ", ".join(sorted(values)) for name, values in sorted(found.items())}


def _profile(table: Table) -> dict[str, dict[str, str]]:
    return {
        "rows": {row.selector: row.value for row in table.rows},
        "numbers": {"numbers": " ".join(map(decimal, table.numbers))} if table.numbers else {},
        "blocks": {block.name: block.value for block in table.blocks},
    }


def _mentioned(recipe: Recipe, output: Output, chosen: Mapping[str, Param]) -> set[str]:
    """The names that an output's expression leads to, through steps and params; of sweeps, through the values that are
    `chosen` for it."""
    expressions: list[Expression] = [output.expr, *output.replace.values()]
    found: set[str] = set()
    while expressions:
        for name in expressions.pop().names:
            if name in found:
                continue
            found.add(name)
            step, param = recipe.steps.get(name), chosen.get(name, recipe.params.get(name))
            if step is not None:
                expressions += [
                    e for e in (step.expr, *step.arguments.values(), *step.replace.values()) if e is not None
                ]
            if param is not None:
                expressions += param.expressions
    return found


def reason(wanted_key: str, found: Found, now: Snapshot) -> tuple[bool, str]:
    """Whether to build, and why, in one line."""
    if not found.exists:
        return True, "it is not there" if found.snapshot is None else "it is gone"
    if found.key == wanted_key and found.intact:
        return False, "it is up to date"
    if not found.intact:
        return True, "it is not what mergeflow built there, and only --force overwrites it"
    if found.snapshot is None:
        return True, "it was built from something else"
    changes = differences(found.snapshot, now.to_json(), found.changed)
    return True, "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more changes" if len(changes) > 4 else "")


def differences(before: Mapping[str, Any], after: Mapping[str, Any], tensors: Sequence[str] | None = None) -> list[str]:
    """What changed between two builds, the causes first. Names are compared by what they stand for: a source that was
    only renamed is no change. `tensors` are those that differ, where that is known: where one source is all that
    changed, it is in these."""
    lines: list[str] = []
    of_profiles = before.get("profiles", {}).keys() | after["profiles"].keys()
    old, new = before.get("params", {}), after["params"]
    for name in sorted(old.keys() | new.keys() | of_profiles):
        if name in of_profiles:
            was_table, now_table = (s.get("profiles", {}).get(name) or _flat(s, name) for s in (before, after))
            lines += _profile_differences(name, was_table, now_table)
            continue
        was, is_now = old.get(name, "not there"), new.get(name, "not there")
        if was != is_now:
            lines.append(f"{name} changed: {_short(was)} → {_short(is_now)}")
    others: list[str] = []
    old, new = before.get("sources", {}), after["sources"]
    if sorted(old.values()) != sorted(new.values()):
        others = [name for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
        lines += [f"{name} is another file: {old[name][:11]}… → {new[name][:11]}…" for name in others]
        lines += [f"{name} is new" for name in sorted(new.keys() - old.keys()) if new[name] not in old.values()]
        lines += [
            f"{name} is no longer used" for name in sorted(old.keys() - new.keys()) if old[name] not in new.values()
        ]
    for key, what in (("dtype", "the dtype"), ("compute", "the compute dtype"), ("numerics", "the numerics version")):
        if before.get(key) != after[key]:
            lines.append(f"{what} changed: {before.get(key)} → {after[key]}")
    if (policy := before.get("policy", "exact")) != after.get("policy", "exact"):
        lines.append(f"the policy changed: {policy} → {after.get('policy', 'exact')}")
    if (container := before.get("container", "one file")) != after.get("container", "one file"):
        lines.append(f"it is written otherwise: {container} → {after.get('container', 'one file')}")
    old, new = before.get("kernels", {}), after.get("kernels", {})
    changed = [name for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    lines += [f"the method {name} changed: {old[name]} → {new[name]}" for name in changed]
    if before.get("seed") and after.get("seed") and before["seed"] != after["seed"]:
        lines.append(f"the seed changed: {before['seed']} → {after['seed']}")
    told = [sorted(s.get("metadata_for", ())) for s in (before, after)]
    if before.get("metadata") != after["metadata"] or told[0] != told[1]:
        lines.append("its metadata changed")
    same_form = before.get("form") == after["form"]
    if not lines:
        lines += _argument_differences(before.get("arguments", {}), after["arguments"])
    if not (lines or same_form):
        lines.append(f"the expression changed: {before.get('form')} → {after['form']}")
    if tensors is not None and same_form and len(others) == len(lines) == 1:
        lines[0] += f", which differs in {_tensors(tensors)}"
    return lines or ["something that decides its bytes changed"]


def _argument_differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Of kernels that were there before and are now."""
    changed = [name for name in new if old.get(name, new[name]) != new[name]]
    return [f"{name} changed: {_short(old[name])} → {_short(new[name])}" for name in changed]


def _tensors(names: Sequence[str]) -> str:
    if not names:
        return "nothing that is used here"
    return names[0] if len(names) == 1 else f"{len(names):,} tensors, such as {names[0]}"


def _flat(snapshot: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A param that is one number, as if it were a profile."""
    number = snapshot.get("params", {}).get(name)
    return {"rows": {} if number is None else {"default": number}}


def _profile_differences(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What changed in a profile: the lines that say something else; where some came or went, the blocks it changed."""
    old, new = before["rows"], after["rows"]
    found = [f"{name}.{s} changed: {old[s]} → {new[s]}" for s in old if s in new and old[s] != new[s]]
    moved = [s for s in dict.fromkeys((*old, *new)) if (s in old) != (s in new)]
    if not moved and before.get("numbers") == after.get("numbers"):
        return found
    blocks = _block_differences(before, after)
    if len(blocks) > 2:
        (block, was, now), count = blocks[0], len(blocks)
        return [*found, f"{name} changed in {count} blocks, such as {block}: {was} → {now}"]
    if blocks:
        return [*found, *(f"{name}.{block} changed: {was} → {now}" for block, was, now in blocks)]
    first, then = ({**table.get("blocks", {}), **table["rows"]} for table in (before, after))
    gone = "not there"
    return [*found, *(f"{name}.{s} changed: {first.get(s, gone)} → {then.get(s, gone)}" for s in moved)]


def _block_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The blocks, each of one number before and after, whose number changed."""
    blocks = before.get("blocks", {}) or after.get("blocks", {})
    old, new = (
        table.get("blocks") or dict.fromkeys(blocks, table["rows"].get("default", RANGE)) for table in (before, after)
    )
    return [
        (block, old[block], new[block])
        for block in new
        if block in old and old[block] != new[block] and RANGE not in old[block] + new[block]
    ]


def nonfinite_notes(works_sources: Mapping[int, set[str]], facts: Facts) -> list[str]:
    """One line for each source that holds values that are not finite in tensors that are used."""
    return [line for i, names in sorted(works_sources.items()) if (line := _nonfinite(facts[i], names))]


def _nonfinite(source: SourceFacts, names: set[str]) -> str:
    bad = {name: n for name, n in source.nonfinite.items() if name in names}
    if not bad:
        return ""
    total, first = sum(bad.values()), next(iter(bad))
    where = first if len(bad) == 1 else f"{len(bad):,} tensors such as {first}"
    values = "1 value that is" if total == 1 else f"{total:,} values that are"
    return f"{source.name} holds {values} NaN or infinite, in {where}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"

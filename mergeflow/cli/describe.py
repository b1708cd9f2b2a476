"""A plan as plain data, ready for JSON: what `plan` prints, on the terminal too. It decides nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mergeflow.cli.forms import Forms, Steps
from mergeflow.ir.numbers import decimal
from mergeflow.plan.account import Account, account, read_once
from mergeflow.plan.bound import SweepPoint
from mergeflow.plan.cost import Estimate
from mergeflow.plan.place import Placement
from mergeflow.plan.plans import OutputPlan, Plan


def describe(plan: Plan, most_steps: int | None = None) -> dict[str, Any]:
    """Sources, params, steps with their normal forms (the first `most_steps`), outputs with everything decided."""
    steps = [name for name in plan.bound.steps if name in plan.graph]
    forms = Forms(plan)
    described = list(Steps(plan, steps, forms).described(steps[:most_steps]))
    return {
        "recipe": str(plan.bound.recipe.path) if plan.bound.recipe.path else None,
        "sources": [_source(plan, i) for i in plan.facts],
        "params": {name: decimal(value) for name, value in plan.bound.numbers.items()},
        "profiles": _profiles(plan),
        "unused_params": list(plan.bound.unused),
        "sweeps": _sweeps(plan),
        "steps": described,
        "steps_left_out": max(0, len(steps) - len(steps[:most_steps])),
        "unused_steps": [name for name in plan.bound.steps if name not in plan.graph],
        "outputs": [_output(plan, output, forms) for output in plan.outputs],
        "passes": [
            {
                "outputs": [output.path for output in members],
                "bytes_read": read_once(plan, members),
                "placement": members[0].placement and placed(members[0].placement, kernels=True),
            }
            for members in plan.passes()
        ],
        "store": _store(plan),
        "notes": list(plan.notes),
    }


def _store(plan: Plan) -> dict[str, Any]:
    """What is put into the store before the outputs are made, what is not, and the rates (bytes per second) that this
    was decided by; those of `keep: true` are not estimated."""
    makes = [
        {
            "title": o.title,
            "tensors": len(o.keyed),
            "bytes": o.layout.file_size,
            **({} if o.kind == "step" else _seconds(o.cost)),
            "reason": o.reason,
            "placement": o.placement and placed(o.placement, kernels=True),
        }
        for o in plan.objects
    ]
    declined = [
        {"title": d.title, "bytes": d.nbytes, **({} if d.asked else _seconds(d.cost)), "reason": d.reason}
        for d in plan.declined
    ]
    rates = plan.rates and {"read": round(plan.rates.read), "write": round(plan.rates.write)}
    return {"makes": makes, "declines": declined, "rates": rates}


def _seconds(cost: Estimate) -> dict[str, float]:
    return {"compute_seconds": cost.compute, "keep_seconds": cost.keep}


def _source(plan: Plan, number: int) -> dict[str, Any]:
    facts = plan.facts[number]
    dtypes = Counter(t.dtype.label for t in facts.tensors.values())
    return {
        "name": facts.name,
        "path": str(plan.bound.sources[number].path),
        "digest": facts.model,
        "tensors": len(facts.tensors),
        "bytes": sum(t.nbytes for t in facts.tensors.values()),
        "dtypes": [label for label, _ in dtypes.most_common()],
        "architecture": facts.architecture.name,
        "kind": "delta" if facts.delta else facts.kind.name if facts.kind is not None else "model",
    }


def _profiles(plan: Plan) -> dict[str, dict[str, Any]]:
    """What each profile came to, by the first output that uses it."""
    found: dict[str, dict[str, Any]] = {}
    for output in plan.outputs:
        for name, table in output.resolved.tables.items():
            found.setdefault(
                name,
                {
                    "selectors": [{"selector": r.selector, "value": r.value, "tensors": r.tensors} for r in table.rows],
                    "blocks": {block.name: block.value for block in table.blocks},
                    "preset": table.like or None,
                },
            )
    return found


def _sweeps(plan: Plan) -> dict[str, dict[str, str]]:
    """The values of each sweep that these outputs are made for, by their labels."""
    found: dict[str, dict[str, str]] = {}
    for point in (plan.bound.points[output.path] for output in plan.outputs):
        for name, label in point.labels.items():
            found.setdefault(name, {})[label] = _swept(point, name)
    return found


def _swept(point: SweepPoint, name: str) -> str:
    """The value of a sweep at a point: its number, or what the recipe says."""
    if name in point.numbers:
        return decimal(point.numbers[name])
    value = point.params[name].value
    return value.text.strip() if value is not None else "a profile"


def _output(plan: Plan, output: OutputPlan, forms: Forms) -> dict[str, Any]:
    resolved, placement, point = output.resolved, output.placement, plan.bound.points[output.path]
    counts = account(plan, output)
    texts = [forms.text(form) for form in resolved.forms]
    shown = Counter(texts[case] for case in resolved.cases)
    dtypes: Counter[str] = Counter()
    for work in output.works:
        dtypes[work.dtype.label] += work.nbytes
    return {
        "path": output.path,
        "file": str(output.target),
        "template": point.template,
        "sweep": dict(point.labels),
        "params": dict(output.snapshot.params),
        "build": output.build,
        "reason": output.reason,
        "key": output.key,
        "forms": [{"form": text, "tensors": n} for text, n in shown.most_common()],
        "policy": output.snapshot.policy,
        "kind": "delta" if resolved.delta else "model",
        "primary": plan.facts[resolved.primary].name,
        "architecture": resolved.architecture.name,
        "tensors": dict(Counter(counts.how)),
        "kept": kept_files(counts),
        "dtypes": [label for label, _ in dtypes.most_common()],
        "begun": counts.begun,
        "bytes_read": counts.bytes_read,
        "bytes_kept": counts.bytes_kept + counts.bytes_begun,
        "bytes_written": output.layout.file_size,
        "placement": placement and placed(placement),
        "warnings": list(output.warnings),
    }


def placed(placement: Placement, *, kernels: bool = False) -> dict[str, Any]:
    """Where a pass runs: `peak` bytes of the machine's memory, `vram` of each of `devices`, `seconds` that it should
    take, what it is bound by, and the runner-up; with `kernels`, each program by itself, as if it were all of it."""
    names = ("device", "strategy", "workers", "unit", "tile", "peak", "devices", "vram")
    found: dict[str, Any] = {name: getattr(placement, name) for name in names}
    if (outlook := placement.outlook) is None:
        return found
    found |= {"seconds": outlook.seconds, "bound": outlook.bound, "runner_up": outlook.runner_up or None}
    if kernels:
        found["kernels"] = [
            {
                "kernel": k.title,
                "tensors": k.tensors,
                "elements": k.elements,
                "device": k.device,
                "strategy": k.strategy,
                "tile": k.tile,
                "peak": k.peak,
                "vram": k.vram,
                "seconds": k.outlook.seconds,
                "bound": k.outlook.bound,
            }
            for k in outlook.kernels
        ]
    return found


def kept_files(counts: Account) -> list[dict[str, Any]]:
    """The files that earlier builds have left, and what is taken of each."""
    return [
        {
            "file": str(file.path),
            "interrupted": file.interrupted or None,
            "tensors": file.tensors,
            "bytes": file.nbytes,
        }
        for file in counts.taken
    ]

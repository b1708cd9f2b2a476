"""What an output changes about a result apart from its values: which tensors it has, in which dtype, and the few that
it sets outright.

    only: unet           drop: [ema, '*.attn_mask']     selectors, as in profiles; junk: what training left behind
    dtype: { default: float16, vae: float32 }
    fix: [clip_position_ids]                            0 … 76 as int64, where the tensor is there
    mark: [v_pred, ztsnr]                               empty tensors that loaders look for
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mergeflow.arch import Architecture, junk
from mergeflow.arch.selectors import select
from mergeflow.digest import NUMERICS, action_key, hash_bytes
from mergeflow.errors import RecipeError, UnknownName
from mergeflow.plan.program import CONSTANT, TensorWork
from mergeflow.plan.resolve import Resolved
from mergeflow.recipe import Output
from mergeflow.tensors import DType

MARKS = ("v_pred", "ztsnr")
FIXES = ("clip_position_ids",)
_POSITIONS = 77  # of CLIP: the ids a broken merge rounds down (sd-merge-tools: 28.999998 is read as 28)


def trim(resolved: Resolved, output: Output) -> Resolved:
    """The result without what `only:` leaves out and `drop:` takes away.

    Raises:
        RecipeError: nothing is left, or a selector that fits nothing.
    """
    if not output.only and not output.drop:
        return resolved
    names = [spec.name for spec in resolved.specs]
    kept = set(_positions(resolved.architecture, output.only, names, output)) if output.only else set(range(len(names)))
    kept -= set(_positions(resolved.architecture, output.drop, names, output))
    if not kept:
        raise RecipeError("only: and drop: leave no tensor", place=output.place)
    order = sorted(kept)
    return replace(
        resolved,
        specs=tuple(resolved.specs[i] for i in order),
        primaries=tuple(resolved.primaries[i] for i in order),
        cases=tuple(resolved.cases[i] for i in order),
    )


def dtypes(resolved: Resolved, output: Output) -> list[DType | None]:
    """The dtype asked for each tensor; None: its own."""
    wanted: list[DType | None] = [output.dtype] * len(resolved.specs)
    if not output.dtypes:
        return wanted
    names = [spec.name for spec in resolved.specs]
    rank = [-1] * len(names)
    for selector, dtype in output.dtypes.items():
        how_narrow, positions = select(resolved.architecture, selector, names, place=output.place)
        for i in positions:
            if rank[i] == how_narrow and wanted[i] is not dtype:
                raise RecipeError(
                    f"dtype: two equally narrow entries disagree about {names[i]}",
                    place=output.place,
                    hint="add a narrower entry for the tensors they share",
                )
            if rank[i] < how_narrow:
                rank[i], wanted[i] = how_narrow, dtype
    return wanted


def constants(works: Iterable[TensorWork], output: Output) -> list[TensorWork]:
    """The tensors that `fix:` and `mark:` set, in place of what the works would make."""
    _check("fix", output.fix, FIXES, output)
    _check("mark", output.mark, MARKS, output)
    found = []
    if "clip_position_ids" in output.fix:
        ids = struct.pack(f"<{_POSITIONS}q", *range(_POSITIONS))
        for work in works:
            count = work.shape[-1] if work.shape else 0
            if work.name.endswith(".position_ids") and count == _POSITIONS and work.shape[:-1] in ((), (1,)):
                found.append(_constant(work.name, DType.I64, work.shape, ids))
    found += [_constant(name, DType.F32, (0,), b"") for name in output.mark]
    return found


def constant_preimage(work: TensorWork) -> str:
    shape = ",".join(map(str, work.shape))
    digest = hash_bytes(work.data).hex()
    return f"mergeflow tensor key\nnumerics {NUMERICS}\nconstant {work.dtype.label} {shape} b3:{digest}\n"


def _constant(name: str, dtype: DType, shape: tuple[int, ...], data: bytes) -> TensorWork:
    work = TensorWork(name, dtype, shape, "", CONSTANT, (), data=data)
    return work._replace(key=action_key(constant_preimage(work)))


def _positions(
    architecture: Architecture, selectors: Sequence[str], names: Sequence[str], output: Output
) -> Iterable[int]:
    for selector in selectors:
        if selector == "junk":  # what training left behind; none of it is no mistake
            left_behind = junk(names)
            yield from (i for i, name in enumerate(names) if name in left_behind)
            continue
        _, positions = select(architecture, selector, names, place=output.place)
        if not positions and selector not in architecture.component_names:  # a part that is not there needs no dropping
            raise RecipeError(f"{selector!r} fits no tensor of the result", place=output.place)
        yield from positions


def _check(what: str, given: Sequence[str], known: Sequence[str], output: Output) -> None:
    for name in given:
        if name not in known:
            raise UnknownName(f"{what}", name, known, place=output.place)

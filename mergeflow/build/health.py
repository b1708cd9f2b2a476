"""What a model file is and what is wrong with it, judged by its header, its digests and its few integer tensors."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod, trunc

from mergeflow.arch import VAE, Architecture, Kind, junk, variant
from mergeflow.arch.expected import expected, expected_vae, fits, may_have, may_lack
from mergeflow.digest import model_digest, printable
from mergeflow.formats.many import ReadFiles
from mergeflow.plan.facts import QUANTISED
from mergeflow.sources.adapt import adapt, identity
from mergeflow.sources.identify import Identified
from mergeflow.tensors import DType, TensorSpec

MOST_IDS = 1 << 16  # a position table is far shorter
_CODES = {DType.F64: "d", DType.F32: "f", DType.F16: "e", DType.I64: "q", DType.I32: "i", DType.I16: "h", DType.I8: "b",
          DType.U64: "Q", DType.U32: "I", DType.U16: "H", DType.U8: "B"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: `kind` is position-ids, nonfinite, missing, foreign or shape. `tensors` are all that it
    is about, `ids` the positions that a reader would get wrong."""

    kind: str
    text: str
    tensors: tuple[str, ...]
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A component: its digest is that of its weights, whatever stands before their names, so that equal VAEs have equal
    ones, in a model or alone. `known` is what the user calls it, where the user has told (known.py)."""

    tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    digest: str
    known: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict on one file. `savings` says what pruning would save, in bytes, by what is left out or narrowed."""

    architecture: Architecture
    reason: str
    variant: str
    kind: Kind | None
    parts: Mapping[str, Part]
    averages: int
    savings: Mapping[str, int]
    nbytes: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def pruned(self) -> int:
        """Bytes of tensors that pruning would leave."""
        return self.nbytes - sum(self.savings.values())


def read_ids(found: Identified) -> dict[str, tuple[float, ...]]:
    """The values of the position tables, by their names in the file: all that has to be read of a known file."""
    specs = [t for t in found.tensors.values() if t.name.endswith("position_ids") and t.elements <= MOST_IDS]
    tables: dict[str, tuple[float, ...]] = {}
    if specs:
        with ReadFiles(found.files) as files:
            for spec in specs:
                data = bytearray(spec.nbytes)
                files.read_into(memoryview(data), spec.start)
                if (values := _values(data, spec.dtype)) is not None:
                    tables[spec.name] = values
            files.check_unchanged()
    return tables


def _values(data: bytearray, dtype: DType) -> tuple[float, ...] | None:
    if dtype is DType.BF16:  # the upper half of a float32
        data = bytearray(b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2)))
        dtype = DType.F32
    code = _CODES.get(dtype)
    return struct.unpack(f"<{len(data) // dtype.size}{code}", data) if code else None


def broken_ids(values: Sequence[float]) -> tuple[int, ...]:
    """The positions that come out wrong when a table 0, 1, 2 … is read as integers, which cuts fractions off."""
    return tuple(i for i, value in enumerate(values) if not isfinite(value) or trunc(value) != i)


def judge(found: Identified, ids: Mapping[str, Sequence[float]], known: Mapping[str, str] = {}) -> Health:
    """`ids` are the values of the position tables (read_ids), `known` the names of components by digest (known.py)."""
    model = adapt(found, found.path.name)
    seen = identity(found)
    architecture, aliases, kind = seen.architecture, seen.aliases, seen.kind
    tensors = model.tensors
    shapes = {name: spec.shape for name, spec in tensors.items()}
    special, _ = variant(shapes)
    members: dict[str, list[str]] = {}
    for name in tensors:
        members.setdefault(architecture.component(name) or "", []).append(name)
    useless = junk(tensors)
    complete = _complete(architecture, kind)
    findings = [
        *_positions({aliases[n].name if n in aliases else n: values for n, values in ids.items()}),
        *_nonfinite(model.nonfinite),
    ]
    shape_findings, notes = _shapes(shapes, complete)
    findings += [*_missing(shapes, complete, architecture), *_foreign(members, complete, useless), *shape_findings]
    lacking = [c for c in architecture.components if c not in members and c not in ("ema", "depth")]
    if lacking and architecture.components and kind is None:
        notes.append(f"it has no {', no '.join(lacking)}")
    if aliases:
        notes.append(f"{len(aliases):,} tensors are called otherwise in the file, such as {next(iter(aliases))}")
    averages = [name for name in members.get("ema", []) if name not in useless]
    return Health(
        architecture,
        seen.reason,
        special,
        kind,
        {
            component: _part([tensors[n] for n in names], model.digests, architecture, known)
            for component, names in _front_to_back(members, architecture)
        },
        len(averages),
        _savings(tensors, averages, useless),
        sum(t.nbytes for t in tensors.values()),
        tuple(findings),
        tuple(notes),
    )


def _front_to_back(members: Mapping[str, list[str]], architecture: Architecture) -> Iterable[tuple[str, list[str]]]:
    return ((c, members[c]) for c in (*architecture.components, "") if c in members)


def _part(
    specs: Sequence[TensorSpec], digests: Mapping[str, bytes], architecture: Architecture, known: Mapping[str, str]
) -> Part:
    """Buffers are left out of the digest: a repaired table of positions makes no other text encoder."""
    sizes = Counter[str]()
    for spec in specs:
        sizes[spec.dtype.label] += spec.nbytes
    weights = [spec.name for spec in specs if not architecture.is_buffer(spec.name)]
    cut = _common(weights)
    digest = printable(model_digest((name[cut:], digests[name]) for name in weights))
    dtypes = tuple(label for label, _ in sizes.most_common())
    return Part(len(specs), sum(s.nbytes for s in specs), dtypes, digest, known.get(digest, ""))


def _common(names: Sequence[str]) -> int:
    """The length of what all names begin with, up to a dot and with it."""
    first, last = min(names, default=""), max(names, default="")  # all others begin with what these two share
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first.rfind(".", 0, same) + 1


def _complete(architecture: Architecture, kind: Kind | None) -> Mapping[str, tuple[int, ...]]:
    if architecture.name == VAE and kind is not None:
        return expected_vae(int(kind.facts.get("channels", 0)))
    return expected(architecture.name)


def _savings(tensors: Mapping[str, TensorSpec], averages: Sequence[str], useless: Mapping[str, str]) -> dict[str, int]:
    """What each step of pruning saves, of what the steps before it left: averages, junk, precision above 16 bits."""
    saved = Counter[str]()
    gone = set(averages) | useless.keys()
    for name in averages:
        saved["running averages (EMA)"] += tensors[name].nbytes
    for name, what in useless.items():
        saved[what] += tensors[name].nbytes
    for spec in tensors.values():
        if spec.name not in gone and spec.dtype.is_float and spec.dtype.size > 2:
            saved[f"float16 in place of {spec.dtype.label}"] += spec.elements * (spec.dtype.size - 2)
    return {what: n for what, n in saved.items() if n}


def _positions(tables: Mapping[str, Sequence[float]]) -> Iterable[Finding]:
    for name, values in tables.items():
        if ids := broken_ids(values):
            first = values[ids[0]]
            text = f"{len(ids)} of {len(values)} position ids are broken (position {ids[0]} is stored as {first:.9g})"
            yield Finding("position-ids", text, (name,), ids)


def _nonfinite(counts: Mapping[str, int]) -> Iterable[Finding]:
    if counts:
        text = f"{sum(counts.values()):,} values are NaN or infinite"
        yield Finding("nonfinite", text, tuple(sorted(counts, key=lambda n: -counts[n])))


def _missing(
    shapes: Mapping[str, tuple[int, ...]], complete: Mapping[str, tuple[int, ...]], architecture: Architecture
) -> Iterable[Finding]:
    """Of each component that is there at all; a file may well be a VAE alone."""
    here = {architecture.component(name) for name in complete if name in shapes}
    lacks: dict[str, list[str]] = {}
    for name in complete:
        component = architecture.component(name)
        if component and component in here and name not in shapes and not may_lack(name):
            lacks.setdefault(component, []).append(name)
    for component, names in lacks.items():
        yield Finding("missing", f"{component} lacks {_count(names)}", tuple(names))


def _foreign(
    members: Mapping[str, list[str]], complete: Mapping[str, tuple[int, ...]], useless: Mapping[str, str]
) -> Iterable[Finding]:
    """Tensors that the architecture has no place for. Where its tensors are not known one by one, those of no
    component."""
    if not members.keys() - {""}:
        return
    listed_parts = {component for component, names in members.items() if any(name in complete for name in names)}
    names = [
        name
        for component, own in members.items()
        if component != "ema" and (not component or component in listed_parts)
        for name in own
        if name not in complete and name not in useless and not _is_beside(name)
    ]
    if names:
        text = f"{_count(names)} {'is' if len(names) == 1 else 'are'} no part of such a model"
        yield Finding("foreign", text, tuple(names))


def _is_beside(name: str) -> bool:
    """Schedules, markers and scales that come with models of all kinds."""
    from mergeflow.arch.base import UNKNOWN
    from mergeflow.arch.contents import MARKERS

    return name in MARKERS or UNKNOWN.is_buffer(name) or may_have(name) or name.endswith(QUANTISED)


def _shapes(
    shapes: Mapping[str, tuple[int, ...]], complete: Mapping[str, tuple[int, ...]]
) -> tuple[list[Finding], list[str]]:
    """Tensors of another shape than they should have. Where most are, the model is of another width altogether."""
    common = [name for name in complete if name in shapes]
    wrong = [name for name in common if not fits(name, shapes[name], complete[name])]
    if not wrong:
        return [], []
    if 2 * len(wrong) > len(common):
        return [], ["its network has other widths than the published one: shapes are not compared"]
    has, wants = ("×".join(map(str, table[wrong[0]])) or "scalar" for table in (shapes, complete))
    text = f"{_count(wrong)} {'has' if len(wrong) == 1 else 'have'} the wrong shape ({has}, should be {wants})"
    lost = sum(prod(shapes[name]) == prod(complete[name]) for name in wrong) == len(wrong)
    return [Finding("shape", text + (", with as many values" if lost else ""), tuple(wrong))], []


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} tensor" + ("" if len(names) == 1 else "s")

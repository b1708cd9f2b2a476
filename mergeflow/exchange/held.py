"""What the header of an output shows that its graph does not say: which tensors are there, in which dtypes, and the
few that were set outright. From it come `only`, `drop`, `dtype`, `fix` and `mark` of the recipe.

A graph knows no tensor that was left out. Where a whole component is not there, the recipe says so: that holds whether
it was dropped or the models never had it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mergeflow.arch import UNKNOWN, Architecture, get, junk, names, understand
from mergeflow.exchange.draft import Value
from mergeflow.formats.contents import Contents
from mergeflow.formats.files import ReadFile
from mergeflow.plan.surgery import MARKS
from mergeflow.tensors import DType, TensorSpec

_EMA = "ema"
_COUNTED = struct.pack("<77q", *range(77))  # what `fix: [clip_position_ids]` sets


@dataclass(frozen=True, slots=True)
class Held:
    """The tensors of an output, marks apart. `marks`: those it has; `counted`: whether all its tables of CLIP's
    position ids hold 0 … 76 as int64, as they do where `fix:` has set them."""

    architecture: Architecture = UNKNOWN
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    counted: bool = False

    def place(self, tensor: str) -> tuple[str, str]:
        """The block and the component of a tensor; '' where it is in none."""
        return self.architecture.block(tensor) or "", self.architecture.component(tensor) or ""

    def by_component(self) -> dict[str, list[str]]:
        """The tensors of each component that has any, in the architecture's order."""
        found: dict[str, list[str]] = {component: [] for component in self.architecture.components}
        for name in self.tensors:
            if (component := self.architecture.component(name)) is not None:
                found[component].append(name)
        return {component: tensors for component, tensors in found.items() if tensors}

    def dtypes(self, tensors: Iterable[str]) -> frozenset[DType]:
        """Of those that arithmetic is done on."""
        floats = (self.tensors[name] for name in tensors if not self.architecture.is_buffer(name))
        return frozenset(spec.dtype for spec in floats if spec.dtype.is_float)


NOTHING = Held()  # where a graph is known without its file


def held(contents: Contents) -> Held:
    """What a file holds. Of its values only tables of position ids are read, 616 bytes each."""
    specs = contents.tensors
    marks = tuple(m for m in MARKS if m in specs and specs[m].shape == (0,) and specs[m].dtype is DType.F32)
    tensors = {name: spec for name, spec in specs.items() if name not in marks}
    ids = [spec for name, spec in tensors.items() if name.endswith(".position_ids") and spec.shape[-1:] == (77,)]
    counted = bool(ids) and all(_is_counted(spec, contents) for spec in ids)
    return Held(architecture_of(contents), tensors, marks, counted)


def architecture_of(contents: Contents) -> Architecture:
    shapes = {name: spec.shape for name, spec in contents.tensors.items()}
    return understand(shapes, contents.other, contents.extras).architecture


def _is_counted(spec: TensorSpec, contents: Contents) -> bool:
    if spec.dtype is not DType.I64 or spec.shape not in ((77,), (1, 77)):
        return False
    with ReadFile(contents.files[spec.file]) as file:
        return file.read(len(_COUNTED), spec.start) == _COUNTED


def set_outright(held: Held, dtype: DType | None, donated: Iterable[str]) -> dict[str, Value]:
    """What an output says besides its expression. `dtype`: what its graph says of all tensors; `donated`: components
    that are another model's."""
    value: dict[str, Value] = {**_left_out(held)}
    if dtypes := _dtypes(held, dtype, frozenset(donated)):
        value["dtype"] = dtypes
    if held.counted:
        value["fix"] = ["clip_position_ids"]
    if held.marks:
        value["mark"] = list(held.marks)
    return value


def _left_out(held: Held) -> dict[str, Value]:
    """`only` or `drop`: nothing of it takes away a tensor that the output has."""
    present = held.by_component()
    absent = [component for component in held.architecture.components if component not in present]
    if held.tensors and not present:
        return _alone(held)
    if not absent:
        return {}
    inside = sum(map(len, present.values()))
    if inside == len(held.tensors) and absent != [_EMA]:
        return {"only": list(present)}
    if _EMA in absent and not junk(held.tensors):
        absent.append("junk")  # averages are seldom dropped without the rest of what training left behind
    return {"drop": absent}


def _alone(held: Held) -> dict[str, Value]:
    """A component by itself, such as a VAE under the names that it has in models, is of no architecture."""
    for architecture in map(get, names()):
        found = {architecture.component(name) for name in held.tensors}
        part = found.pop() if len(found) == 1 else None
        if part is not None and len(architecture.components) > 2:  # more than a network and its averages
            return {"only": list(architecture.components[part])}
    return {}


def _dtypes(held: Held, dtype: DType | None, donated: frozenset[str]) -> Value:
    """The dtype of each component that the graph leaves open or that has another; '' where nothing is to be said."""
    found = {component: held.dtypes(tensors) for component, tensors in held.by_component().items()}
    alike = {component: next(iter(dtypes)) for component, dtypes in found.items() if len(dtypes) == 1}
    lines: dict[str, Value] = {} if dtype is None else {"default": dtype.label}
    if dtype is None:
        mixed = len({own for component, own in alike.items() if component not in donated}) > 1
        lines |= {c: own.label for c, own in alike.items() if mixed or c in donated}
        return lines or ""
    lines |= {component: own.label for component, own in alike.items() if own is not dtype}
    for name, spec in held.tensors.items():
        own = alike.get(held.place(name)[1], dtype)
        if spec.dtype.is_float and not held.architecture.is_buffer(name) and spec.dtype is not own:
            lines[name] = spec.dtype.label
    return lines if len(lines) > 1 else dtype.label

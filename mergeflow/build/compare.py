"""Two models tensor by tensor: which are the same, and how far apart the others are. Memory is a few blocks a thread.

Tensors with equal digests are not read. For the others four sums are taken in float64 over the values that are finite
in both: A·A, B·B, A·B and the squares of B - A. Sums add up, so blocks and components are as exact as tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeflow.arch import UNKNOWN, VAE, Architecture
from mergeflow.errors import IntegrityError
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter, silent
from mergeflow.formats.many import ReadFiles
from mergeflow.plan.embed import KIND
from mergeflow.plan.related import ENOUGH, RELATED
from mergeflow.sources.adapt import Adapted, adapt
from mergeflow.sources.identify import Identified
from mergeflow.tensors import DType, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAME, CHANGED, ADDED, REMOVED = "same", "changed", "added", "removed"
REST = "the rest"
STEP = 1 << 16  # values at a time: they stay in the cache
_NUMBERED = re.compile(r"(?:^|\.)((?:(?:encoder|decoder)\.(?=down|up))?[^.]+\.[0-9]+)(?:\.|$)")
_HALF = re.compile(r"(?:^|\.)(encoder|decoder)\.")


@dataclass(frozen=True, slots=True)
class Sums:
    """What cosine and difference are made of; `values` is how many were compared."""

    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    values: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.aa + other.aa, self.bb + other.bb, self.ab + other.ab, self.dd + other.dd, self.values + other.values
        )

    @property
    def cosine(self) -> float | None:
        """1: the same direction; 0: nothing in common. None where one side is zero, or nothing was compared."""
        size = math.sqrt(self.aa) * math.sqrt(self.bb)
        return max(-1.0, min(1.0, self.ab / size)) if size else None

    @property
    def relative(self) -> float | None:
        """The size of B - A over the size of A."""
        if not self.values:
            return None
        if not self.aa:
            return math.inf if self.dd else 0.0
        return math.sqrt(self.dd / self.aa)


@dataclass(frozen=True, slots=True)
class Compared:
    """One tensor. `why` says what keeps its values from being compared, where they differ and are not."""

    name: str
    component: str
    block: str
    state: str
    sums: Sums = Sums()
    why: str = ""


@dataclass(slots=True)
class Tally:
    """Tensors taken together: how many are in each state, and the sums over those that changed."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((SAME, CHANGED, ADDED, REMOVED), 0))
    sums: Sums = Sums()

    def add(self, tensor: Compared) -> None:
        self.counts[tensor.state] += 1
        self.sums += tensor.sums


@dataclass(frozen=True, slots=True)
class Comparison:
    """`tensors` by component and block, front to back."""

    architecture: Architecture
    tensors: tuple[Compared, ...]
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return all(t.state == SAME for t in self.tensors)

    def whole(self) -> Tally:
        return self._by(lambda _: "")[""] if self.tensors else Tally()

    def components(self) -> Mapping[str, Tally]:
        return self._by(lambda t: t.component)

    def blocks(self) -> Mapping[tuple[str, str], Tally]:
        return self._by(lambda t: (t.component, t.block))

    def _by(self, key: Callable[[Compared], Any]) -> dict[Any, Tally]:
        tallies: dict[Any, Tally] = {}
        for tensor in self.tensors:
            tallies.setdefault(key(tensor), Tally()).add(tensor)
        return tallies


def _vae(found: Identified, adapted: Adapted) -> Adapted:
    has = any(adapted.architecture.component(name) == VAE for name in adapted.tensors)
    return adapt(found, found.path.name, kind=VAE) if has else adapted


def compare(a: Identified, b: Identified, *, report: Reporter = silent, workers: int = 1) -> Comparison:
    """From A to B.

    Raises:
        IntegrityError: a file has changed since it was identified.
    """
    left, right = adapt(a, a.path.name), adapt(b, b.path.name)
    if VAE in (left.architecture.name, right.architecture.name):  # a VAE alone is compared with the other's VAE
        left, right = (_vae(found, adapted) for found, adapted in ((a, left), (b, right)))
    architecture = left.architecture if left.architecture is not UNKNOWN else right.architecture
    states: dict[str, str] = {}
    pairs: dict[str, tuple[TensorSpec, TensorSpec]] = {}
    why: dict[str, str] = {}
    for name in dict.fromkeys((*left.tensors, *right.tensors)):
        one, other = left.tensors.get(name), right.tensors.get(name)
        if one is None or other is None:
            states[name] = ADDED if one is None else REMOVED
        elif left.digests[name] == right.digests[name]:
            states[name] = SAME
        else:
            states[name] = CHANGED
            if why_not := _incomparable(one, other):
                why[name] = why_not
            else:
                pairs[name] = one, other
    sums = _measure(a, b, pairs, report, workers)
    place = {name: stretch(architecture, name) for name in states}
    order = sorted(states, key=lambda name: _order(architecture, *place[name], name))
    tensors = (Compared(n, *place[n], states[n], sums.get(n, Sums()), why.get(n, "")) for n in order)
    no_models = left.kind or right.kind or _is_delta(a) or _is_delta(b)
    strange = [] if no_models else _strangers(a, b, right, states, pairs, sums)
    return Comparison(architecture, tuple(tensors), (*left.notes, *right.notes, *strange))


def _is_delta(found: Identified) -> bool:
    return found.metadata.get(KIND) == "delta"


def _strangers(
    a: Identified,
    b: Identified,
    right: Adapted,
    states: Mapping[str, str],
    pairs: Mapping[str, tuple[TensorSpec, TensorSpec]],
    sums: Mapping[str, Sums],
) -> list[str]:
    """One line if the weights of B have nothing to do with those of A, as planning a merge of them would say.

    Told from whole matrices (gains near 1 are alike in all models), and only where most of them changed: a relative
    with the VAE of a stranger is a relative.
    """
    changed = sum((sums[name] for name, (one, _) in pairs.items() if len(one.shape) > 1), Sums())
    same = sum(
        spec.elements for spec in right.tensors.values() if len(spec.shape) > 1 and states.get(spec.name) == SAME
    )
    if changed.cosine is None or changed.values < max(ENOUGH, same) or changed.cosine >= RELATED:
        return []
    told = f"the cosine of their weights is {changed.cosine:.2f}"
    return [f"{b.path.name} and {a.path.name} share no training history ({told}); a merge of them would be noise"]


def stretch(architecture: Architecture, name: str) -> tuple[str, str]:
    """The component and the block of a tensor. Outside the network, where recipes know no blocks, a layer is one."""
    component = architecture.component(name) or ""
    block = architecture.block(name)
    if block and not architecture.layout.is_outside(block):
        return component, block
    prefixes = (glob.removesuffix("*") for glob in architecture.components.get(component, ()))
    inner = name.removeprefix(next((p for p in prefixes if name.startswith(p)), ""))
    if match := _NUMBERED.search(inner):
        return component, match[1]
    half = _HALF.search(inner)
    return component, half[1] if half else REST


def _order(architecture: Architecture, component: str, block: str, name: str) -> tuple[Any, ...]:
    parts = list(architecture.components)
    part = parts.index(component) if component in parts else len(parts)
    layers = tuple(int(piece) if piece.isdecimal() else piece for piece in re.split(r"([0-9]+)", block))
    return part, block == REST, architecture.layout.place(block)[0], layers, name


def _incomparable(one: TensorSpec, other: TensorSpec) -> str:
    if one.shape != other.shape:
        a, b = ("×".join(map(str, t.shape)) or "scalar" for t in (one, other))
        return f"{a} became {b}"
    if not (one.dtype.is_float and other.dtype.is_float):
        same = one.dtype is other.dtype
        return f"{one.dtype.label} values" if same else f"{one.dtype.label} became {other.dtype.label}"
    return ""


def _measure(
    a: Identified, b: Identified, pairs: Mapping[str, tuple[TensorSpec, TensorSpec]], report: Reporter, workers: int
) -> dict[str, Sums]:
    from mergeflow.formats.workers import Queue, drain

    found: dict[str, Sums] = {}
    if not pairs:
        return found
    largest_first = sorted(pairs.items(), key=lambda item: -item[1][0].nbytes)
    subject = f"{a.path.name} and {b.path.name}"
    report(PhaseStarted("comparing", subject, sum(one.nbytes + other.nbytes for one, other in pairs.values())))
    with ReadFiles(a.files) as left, ReadFiles(b.files) as right:
        for files, identified in ((left, a), (right, b)):
            if files.opened != identified.at:
                raise IntegrityError(f"{identified.path}: changes while it is being read", hint="compare them again")

        def worker() -> Callable[[tuple[str, tuple[TensorSpec, TensorSpec]]], None]:
            def work(item: tuple[str, tuple[TensorSpec, TensorSpec]]) -> None:
                found[item[0]] = _distance(left, right, *item[1], report)

            return work

        drain(Queue(largest_first), worker, workers)
        left.check_unchanged()
        right.check_unchanged()
    report(PhaseEnded("comparing", subject))
    return found


def _distance(left: ReadFiles, right: ReadFiles, one: TensorSpec, other: TensorSpec, report: Reporter) -> Sums:
    import numpy as np

    total = Sums()
    for start in range(0, one.elements, STEP):
        count = min(STEP, one.elements - start)
        x, y = _values(left, one, start, count), _values(right, other, start, count)
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            x, y = x[finite], y[finite]
        d = y - x
        total += Sums(_dot(x, x), _dot(y, y), _dot(x, y), _dot(d, d), len(x))
        report(Progressed(count * (one.dtype.size + other.dtype.size)))
    return total


def _dot(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Not by BLAS, whose threads would get in each other's way in every one of ours."""
    import numpy as np

    return float(np.einsum("i,i->", x, y))


def _values(files: ReadFiles, spec: TensorSpec, start: int, count: int) -> npt.NDArray[np.float64]:
    import numpy as np

    from mergeflow.formats.scan import as_float

    size = spec.dtype.size
    data = np.empty(count * size, np.uint8)
    files.read_into(data.data, spec.start + start * size)
    if spec.dtype is DType.F64:
        return data.view(np.float64)
    with np.errstate(invalid="ignore"):  # a signalling NaN is told on the way
        return as_float(data.view(f"<u{size}"), spec.dtype).astype(np.float64)


def farthest(tensors: Iterable[Compared]) -> list[Compared]:
    """Those that are not the same, the most different first."""
    different = [t for t in tensors if t.state != SAME]
    return sorted(different, key=lambda t: (t.state, -(t.sums.relative or 0.0), t.name))

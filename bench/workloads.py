"""The merges that are measured, in one form that every contender's own recipe is made from."""

from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Term:
    """+ factor * (plus - minus)"""

    plus: str
    minus: str
    factor: str


@dataclass(frozen=True)
class Workload:
    """A base model and differences added to it; `formula` is the same as a person would write it, and as mergeflow
    reads it. Models are named by the lower-case letters of their files."""

    name: str
    title: str
    formula: str
    base: str
    terms: tuple[Term, ...]
    layout: str = "sd15"
    peers: bool = True  # whether peers finish it in reasonable time

    @property
    def models(self) -> list[str]:
        """The models in alphabetical order."""
        return sorted({self.base} | {model for term in self.terms for model in (term.plus, term.minus)})

    @property
    def weights(self) -> dict[str, Decimal]:
        """What each model counts for once the brackets are multiplied out."""
        weights: defaultdict[str, Decimal] = defaultdict(Decimal)
        weights[self.base] += 1
        for term in self.terms:
            weights[term.plus] += Decimal(term.factor)
            weights[term.minus] -= Decimal(term.factor)
        return {model: weights[model] for model in self.models}

    def files(self, prefix: str = "") -> dict[str, str]:
        """File names by model."""
        return {model: f"{prefix or self.layout}-{model.upper()}.safetensors" for model in self.models}


WEIGHTED = Workload(
    name="weighted",
    title="Weighted sum of two models",
    formula="a * 0.7 + b * 0.3",
    base="a",
    terms=(Term("b", "a", "0.3"),),
)
DIFFERENCE = Workload(
    name="difference",
    title="Add difference, three models",
    formula="a + (b - c) * 0.3",
    base="a",
    terms=(Term("b", "c", "0.3"),),
)
CHAIN = Workload(
    name="chain",
    title="A chain of four differences over six models",
    formula="a + (b - c) * 0.3 + (d - b) * 0.2 + (e - c) * 0.1 + (f - d) * 0.25",
    base="a",
    terms=(Term("b", "c", "0.3"), Term("d", "b", "0.2"), Term("e", "c", "0.1"), Term("f", "d", "0.25")),
)
MANY = Workload(
    name="many",
    title="Add difference, 50,000 tensors of 1 to 4 KB",
    formula="a + (b - c) * 0.3",
    base="a",
    terms=(Term("b", "c", "0.3"),),
    layout="many",
    peers=False,
)
ALL = {workload.name: workload for workload in (WEIGHTED, DIFFERENCE, CHAIN, MANY)}

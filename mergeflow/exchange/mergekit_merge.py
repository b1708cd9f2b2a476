"""One merge of a configuration of mergekit: its models, and what is set for each of them and for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from mergeflow.exchange.draft import Draft, spelled
from mergeflow.recipe import nodes
from mergeflow.tensors import DType

_REDUCED = "its shares come from sums over whole tensors, whose order in torch depends on processor and threads"
Setting = Fraction | str | bool  # a number, the name of a param, or a switch


@dataclass(slots=True)
class Input:
    """A model of a merge, spelled as in an expression, with the settings that are its own."""

    name: str
    own: dict[str, Setting] = field(default_factory=dict)


@dataclass(slots=True)
class Merge:
    """One document: its method, the models in its order without the base, and what is set for all of them. `result`:
    the dtype that a method gives, where it is another than that of the models."""

    method: str
    base: str | None
    models: list[Input]
    settings: dict[str, Setting]
    where: nodes.Positioned
    draft: Draft
    dtype: DType | None = None
    faithful: bool = False
    result: DType | None = None

    def of(self, model: Input, key: str, default: Setting | None) -> Setting:
        """A setting of one model: its own, else the one for all, else the method's default."""
        found = model.own.get(key, self.settings.get(key, default))
        if found is None:
            raise self.where.error(f"{self.method} needs {key} for {model.name}", f"as parameters: {{ {key}: 0.5 }}")
        return found

    def common(self, key: str, default: Setting | None) -> Setting:
        """A setting that the method has once."""
        found = self.settings.get(key, default)
        if found is None:
            raise self.where.error(f"{self.method} needs {key}", f"as parameters: {{ {key}: 0.5 }}")
        return found

    def weighted(self, key: str = "weight", default: Setting | None = None) -> str:
        """[a @ 0.5, b]"""
        shown = []
        for model in self.models:
            weight = self.of(model, key, default)
            shown.append(model.name if weight == 1 else f"{model.name} @ {say(weight)}")
        return f"[{', '.join(shown)}]"

    def names(self) -> list[str]:
        return [model.name for model in self.models]

    def from_base(self) -> str:
        """The base of a method that has to have one."""
        if self.base is None:
            raise self.where.error(f"{self.method} needs base_model:")
        return self.base

    def inexact(self, why: str = _REDUCED) -> None:
        """Says, where mergekit's roundings are asked for, that its bytes cannot be."""
        if self.faithful:
            self.draft.lose(f"{self.method}: --faithful cannot be promised: {why}; the last bits differ")


def say(setting: Setting) -> str:
    """A setting as an expression has it."""
    if isinstance(setting, bool):
        return str(setting).lower()
    return spelled(setting) if isinstance(setting, Fraction) else setting

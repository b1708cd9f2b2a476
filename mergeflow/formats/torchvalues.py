"""What a torch pickle comes down to: element types, storages, and tensors as views of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from mergeflow.formats.pickled import Fillable
from mergeflow.tensors import DType


@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """An element type by torch's name; `dtype` is None for those that safetensors has no code for."""

    name: str
    dtype: DType | None
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class StorageClass:
    """`element` is None for storages that are bytes, and whose tensors say their own dtype."""

    name: str
    element: Element | None


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """`count` elements kept outside of the pickle under `key`; `skip` bytes of them come before this view."""

    key: str
    element: Element | None
    count: int
    skip: int = 0

    @property
    def nbytes(self) -> int:
        return self.count * (self.element.size if self.element else 1)


@dataclass(slots=True, eq=False)
class PickledTensor(Fillable):
    """A view of a storage, as the pickle says it. `reason` is why it cannot be read, if so."""

    storage: Storage
    element: Element
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    reason: str = ""

    def build(self, state: object) -> None:
        """Attributes set on a tensor: nothing we need."""


@dataclass(slots=True, eq=False)
class Unreadable(Fillable):
    """A tensor that does not lie in the file as a range of bytes; an error only when the model is made of it."""

    reason: str

    def build(self, state: object) -> None:
        pass


@dataclass(slots=True, eq=False)
class ParameterDict(Fillable):
    """torch.nn.ParameterDict, in which old textual inversions keep their vectors."""

    parameters: dict[object, object] = field(default_factory=dict)

    def build(self, state: object) -> None:
        if isinstance(state, dict) and isinstance(found := state.get("_parameters"), dict):
            self.parameters = found


@dataclass(slots=True, eq=False)
class NumpyType(Fillable):
    code: str

    def build(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.code = ""  # big-endian scalars are not shown

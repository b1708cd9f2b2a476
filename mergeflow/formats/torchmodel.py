"""The model in what a torch pickle describes.

Which part of the file is the model: `state_dict` if it is a mapping with tensors (twice, as A1111 does, for files that
were saved in a wrapper again); else the top level if it holds tensors; else the one mapping in it that does. Two such
mappings (`params` and `params_ema`) are refused, since nobody can say which was meant. Hypernetworks and textual
inversions have shapes of their own. Whatever is not read is named in `extras`, never dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from mergeflow.errors import IntegrityError
from mergeflow.formats.stored import Contents, in_file_order, listed, recognise
from mergeflow.formats.torchvalues import ParameterDict, PickledTensor, Storage, Unreadable
from mergeflow.tensors import TensorSpec

_TEXT_SHOWN = 200
_TENSOR_LIMIT = 500_000


def contents(
    path: Path, container: str, root: object, storages: Callable[[Storage], tuple[int, int]], **extras: str
) -> Contents:
    """The model that the loaded object `root` holds; `storages` tells where in the file a storage lies: (start, size).

    Raises:
        IntegrityError: when it holds no model, or one that cannot be read as ranges of bytes.
    """
    found, facts, other = _select(path, root)
    tensors = [_stored(path, name, t, storages) for name, t in islice(found, _TENSOR_LIMIT + 1)]
    if len(tensors) > _TENSOR_LIMIT:  # a small pickle can repeat one mapping any number of times
        raise IntegrityError(f"{path}: it has more than {_TENSOR_LIMIT:,} tensors, far more than any model")
    if not tensors:
        raise IntegrityError(f"{path}: its pickle holds no tensors under a name", hint=_what_is_there(root))
    if len({t.name for t in tensors}) < len(tensors):
        raise IntegrityError(f"{path}: two of its tensors have the same name")
    return Contents(container, (path,), in_file_order(tensors), {}, extras | facts, other or recognise(tensors))


_Mapping = dict[object, object]
_Found = Iterator[tuple[str, object]]


def _select(path: Path, root: object) -> tuple[_Found, dict[str, str], dict[str, str]]:
    top = _mapping(root)
    if top is None:
        raise IntegrityError(f"{path}: its pickle holds no mapping of names to tensors", hint=_what_is_there(root))
    have = _HaveTensors()
    if parts := _hypernetwork(top, have):
        sizes = listed(dict.fromkeys(str(size) for size, _, _ in parts), 10)
        why = {"hypernetwork": f"it holds layers for the sizes {sizes}"}
        return _hypernetwork_tensors(parts), _facts((k, v) for k, v in top.items() if type(k) is not int), why
    vectors = _mapping(top.get("string_to_param"))
    if vectors is not None and have(vectors):
        named = ((f"string_to_param.{k}", v) for k, v in _tensors(path, vectors))
        rest = _facts((k, v) for k, v in top.items() if k != "string_to_param")
        return named, rest, {"textual inversion": "it has string_to_param"}
    model, keys = _model(path, top, have)
    beside = [(k, v) for k, v in model.items() if not _is_tensor(v)]
    if keys:
        beside = [(k, v) for k, v in top.items() if k != keys[0]] + beside
    facts = {"read from": _brief(".".join(keys))} if keys else {}
    return _tensors(path, model), facts | _facts(beside), {}


def _model(path: Path, top: _Mapping, have: _HaveTensors) -> tuple[_Mapping, list[str]]:
    """The mapping that is the model, and the keys that lead to it: the rule at the top of this file."""
    model, keys = top, list[str]()
    while len(keys) < 2 and (inner := _mapping(model.get("state_dict"))) is not None and have(inner):
        model = inner
        keys.append("state_dict")
    if keys or have(top):
        return model, keys
    inside = {k: m for k, v in top.items() if isinstance(k, str) and (m := _mapping(v)) is not None and have(m)}
    if len(inside) > 1:
        raise IntegrityError(
            f"{path}: it holds more than one set of tensors: {listed(map(_brief, inside))}",
            hint="which of them is the model cannot be told from here: save the one you mean as a file of its own",
        )
    for key, only in inside.items():
        return only, [key]
    return top, []


class _HaveTensors:
    """Whether a mapping holds tensors. Looks once at each, for a pickle can refer to one mapping a million times."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def __call__(self, mapping: _Mapping) -> bool:
        if id(mapping) not in self._known:
            self._known[id(mapping)] = any(map(_is_tensor, mapping.values()))
        return self._known[id(mapping)]


def _is_tensor(value: object) -> bool:
    return isinstance(value, (PickledTensor, Unreadable))


def _mapping(value: object) -> _Mapping | None:
    if isinstance(value, ParameterDict):
        return value.parameters
    return value if isinstance(value, dict) else None


def _tensors(path: Path, mapping: _Mapping) -> _Found:
    for key, value in mapping.items():
        if _is_tensor(value):
            if not isinstance(key, str):
                raise IntegrityError(f"{path}: a tensor in it is named by {_brief(key)}, not by text")
            yield key, value


def _hypernetwork(top: _Mapping, have: _HaveTensors) -> list[tuple[int, int, _Mapping]]:
    """(size, 0 for K or 1 for V, tensors) of each part, when it is one: whole numbers, each with two mappings."""
    parts = []
    for key, value in top.items():
        if type(key) is int and isinstance(value, (tuple, list)) and len(value) == 2:
            for i, part in enumerate(value):
                mapping = _mapping(part)
                if mapping is None or not have(mapping):
                    return []
                parts.append((key, i, mapping))
    return parts


def _hypernetwork_tensors(parts: list[tuple[int, int, _Mapping]]) -> _Found:
    for size, i, mapping in parts:
        for key, value in mapping.items():
            if isinstance(key, str) and _is_tensor(value):
                yield f"{size}.{i}.{key}", value


def _facts(rest: Iterable[tuple[object, object]]) -> dict[str, str]:
    """What is beside the tensors: small values as text, and the names of all else."""
    facts, unread = {}, []
    for key, value in rest:
        name = key if isinstance(key, str) and len(key) <= _TEXT_SHOWN else _brief(key)
        name = name.encode("utf-8", "replace").decode()
        if value is None or isinstance(value, (bool, int, float, str)):
            facts[name] = _brief(value)
        elif not (isinstance(value, (dict, list, tuple)) and not value):
            unread.append(name)
    if unread:
        facts["not read"] = listed(unread, 20)
    return facts


def _brief(value: object) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, (bool, int, float)) or value is None:
        text = str(value)
    else:
        text = f"something ({type(value).__name__})"
    text = text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"
    return text.encode("utf-8", "replace").decode()


def _what_is_there(root: object) -> str:
    if isinstance(root, dict):
        if {"state", "param_groups"} <= root.keys():
            return "it is the state of an optimizer: the model was saved in another file"
        return f"at its top level: {listed((_brief(k) for k in root), 10) or 'nothing'}"
    if isinstance(root, (PickledTensor, Unreadable)):
        return "it is a single tensor without a name"
    return f"it is a {type(root).__name__}" + (f" of {len(root):,}" if isinstance(root, (list, tuple)) else "")


def _stored(path: Path, name: str, t: object, storages: Callable[[Storage], tuple[int, int]]) -> TensorSpec:
    def refused(reason: str) -> IntegrityError:
        return IntegrityError(
            f"{path}: tensor {_brief(name)!r} cannot be read: {reason}",
            hint="save it again where it was made, with .contiguous() on every tensor, best as safetensors",
        )

    try:
        name.encode()
    except UnicodeEncodeError:
        raise IntegrityError(f"{path}: a tensor's name is not valid text: {_brief(name)!a}") from None
    if not isinstance(t, PickledTensor):
        raise refused(t.reason if isinstance(t, Unreadable) else "it is not a tensor")
    if t.reason:
        raise refused(t.reason)
    dtype = t.element.dtype
    if dtype is None:
        raise refused(f"it has the type {t.element.name}, which mergeflow does not know")
    expected = 1
    for n, stride in zip(reversed(t.shape), reversed(t.strides), strict=True):
        if n != 1 and stride != expected and 0 not in t.shape:
            kind = "expanded (stride 0)" if stride == 0 else "transposed or cut out of a larger one"
            raise refused(f"its values do not lie one after another: it is {kind}, shape {list(t.shape)}, "
                          f"strides {list(t.strides)}")  # fmt: skip
        expected *= n
    start, available = storages(t.storage)
    size = min(available, t.storage.nbytes)
    begin, nbytes = t.offset * dtype.size, math.prod(t.shape) * dtype.size
    if nbytes == 0:
        return TensorSpec(name, dtype, t.shape, start + t.storage.skip)
    if available < t.storage.skip + t.storage.nbytes:
        raise refused(
            f"its storage {_brief(t.storage.key)} should have {t.storage.nbytes:,} bytes and has {available:,}"
        )
    if begin + nbytes > size:
        raise refused(f"it needs bytes {begin:,} to {begin + nbytes:,} of a storage of {size:,}")
    return TensorSpec(name, dtype, t.shape, start + t.storage.skip + begin)

"""What torch puts into its pickles: the names that are allowed, the records they become, and the model among them.

Which part of the file is the model: `state_dict` if it is a mapping with tensors (twice, as A1111 does, for files that
were saved in a wrapper again); else the top level if it holds tensors; else the one mapping in it that does. Two such
mappings (`params` and `params_ema`) are refused, since nobody can say which was meant. Hypernetworks and textual
inversions have shapes of their own. Whatever is not read is named in `extras`, never dropped in silence.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mergeflow.errors import IntegrityError
from mergeflow.formats.pickles import Fillable, Function, Inert, Malformed, Refused, Stranger, plain_key
from mergeflow.formats.stored import Contents, in_file_order, listed, recognise
from mergeflow.tensors import DType, TensorSpec

_MAX_DIMS = 64
_TEXT_SHOWN = 200
_TENSOR_LIMIT = 500_000


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


# Names

_CODES = {
    "float64": ("F64", "Double"), "float32": ("F32", "Float"), "float16": ("F16", "Half"),
    "bfloat16": ("BF16", "BFloat16"), "int64": ("I64", "Long"), "int32": ("I32", "Int"), "int16": ("I16", "Short"),
    "int8": ("I8", "Char"), "uint8": ("U8", "Byte"), "bool": ("BOOL", "Bool"), "uint64": ("U64", ""),
    "uint32": ("U32", ""), "uint16": ("U16", ""), "float8_e4m3fn": ("F8_E4M3", ""), "float8_e5m2": ("F8_E5M2", ""),
}  # fmt: skip
_FOREIGN = {
    "complex32": (4, ""), "complex64": (8, "ComplexFloat"), "complex128": (16, "ComplexDouble"), "qint8": (1, "QInt8"),
    "quint8": (1, "QUInt8"), "qint32": (4, "QInt32"), "quint4x2": (1, "QUInt4x2"), "quint2x4": (1, "QUInt2x4"),
    "float8_e4m3fnuz": (1, ""), "float8_e5m2fnuz": (1, ""), "float8_e8m0fnu": (1, ""), "float4_e2m1fn_x2": (1, ""),
    "bits8": (1, ""), "bits16": (2, ""), "bits1x8": (1, ""), "bits2x4": (1, ""), "bits4x2": (1, ""),
}  # fmt: skip
_ALIASES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32",
            "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32"}  # fmt: skip
# Training programs leave their settings and callbacks in a checkpoint. Of these packages a class may be named, and
# becomes a mark that does nothing; a function may not.
_STRANGERS = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")
_STRANGER_NAMES = frozenset(
    {"argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "typing.Any",
     "pathlib.PureWindowsPath", "datetime.datetime", "datetime.timedelta", "datetime.date", "numpy.ndarray",
     "builtins.set", "builtins.frozenset", "builtins.complex", "builtins.list", "builtins.dict", "builtins.tuple",
     "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.slice", "builtins.range",
     "torch.Tensor", "torch.device", "torch.per_tensor_affine", "torch.per_tensor_symmetric",
     "torch.per_channel_affine", "torch.per_channel_symmetric", "torch.per_channel_affine_float_qparams"}
)  # fmt: skip
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "numpy.core.multiarray": "numpy._core.multiarray"}


def find(module: str, name: str) -> object | None:
    """The mark for a global that a model may name, or None."""
    full = f"{_RENAMED.get(module, module)}.{name}"
    known = _TABLE.get(full)
    if known is None and (full in _STRANGER_NAMES or _is_strangers_class(module, name)):
        return Stranger(full)
    return known


def _is_strangers_class(module: str, name: str) -> bool:
    return (
        module.split(".", 1)[0] in _STRANGERS
        and all(part.isidentifier() for part in module.split("."))
        and name.isidentifier()
        and name.lstrip("_")[:1].isupper()
    )


def persistent(reference: object) -> object:
    """A reference to a storage: ("storage", class, key, location, number of elements[, view])."""
    match reference:
        case ("storage", StorageClass() as kind, str(key), _, int(count)) if count >= 0:
            return Storage(key, kind.element, count)
        case ("storage", StorageClass() as kind, str(key), _, int(count), None) if count >= 0:
            return Storage(key, kind.element, count)
        case ("storage", StorageClass() as kind, str(key), _, int(count), (_, int(offset), int(size))) if (
            0 <= offset <= offset + size <= count
        ):
            return Storage(key, kind.element, size, offset * (kind.element.size if kind.element else 1))
        case ("module", *_):
            raise Refused("holds a whole program object (a pickled module), not a table of tensors")
        case _:
            raise Malformed("it refers to a storage in an unknown way")


# What the allowed functions do here. Each gets whatever the file says and checks it.


def _ordered_dict(args: tuple[object, ...]) -> object:
    match args:
        case ():
            return {}
        case (list(pairs),) if all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
            return {plain_key(k): v for k, v in pairs}
        case (dict(items),):
            return dict(items)
        case _:
            raise Malformed("it makes an OrderedDict of something else than pairs")


def _default_dict(args: tuple[object, ...]) -> object:
    return _ordered_dict(args[1:])


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_DIMS:
        raise Malformed("it has a tensor whose shape is no short list")
    for n in value:
        if type(n) is not int or not 0 <= n < 1 << 63:
            raise Malformed("it has a tensor with a shape, stride or offset that is no whole number")
    return tuple(value)


def _view(storage: object, offset: object, size: object, stride: object, dtype: Element | None) -> object:
    if not isinstance(storage, Storage):
        raise Malformed("it has a tensor without a storage")
    (start,), shape, strides = _sizes((offset,)), _sizes(size), _sizes(stride)
    if len(shape) != len(strides):
        raise Malformed("it has a tensor with more dimensions than strides, or fewer")
    element = dtype or storage.element
    if element is None:
        raise Malformed("it has a tensor without a type")
    return PickledTensor(storage, element, start, shape, strides)


def _flipped(tensor: object, metadata: object) -> object:
    if isinstance(tensor, PickledTensor) and isinstance(metadata, dict):
        for flag in ("conj", "neg"):
            if metadata.get(flag):
                tensor.reason = f"it is stored before its {flag} bit is applied"
    return tensor


def _tensor_1(args: tuple[object, ...]) -> object:
    match args:
        case (storage, offset, size, stride):
            return _view(storage, offset, size, stride, None)
        case _:
            raise _wrong("_rebuild_tensor")


def _tensor_2(args: tuple[object, ...]) -> object:
    match args:
        case (storage, offset, size, stride, bool(), _, *metadata) if len(metadata) <= 1:
            return _flipped(_view(storage, offset, size, stride, None), metadata[0] if metadata else None)
        case _:
            raise _wrong("_rebuild_tensor_v2")


def _tensor_3(args: tuple[object, ...]) -> object:
    match args:
        case (storage, offset, size, stride, bool(), _, Element() as dtype, *metadata) if len(metadata) <= 1:
            return _flipped(_view(storage, offset, size, stride, dtype), metadata[0] if metadata else None)
        case _:
            raise _wrong("_rebuild_tensor_v3")


def _parameter(args: tuple[object, ...]) -> object:
    match args:
        case ((PickledTensor() | Unreadable()) as tensor, *rest) if len(rest) <= 3:
            return tensor
        case _:
            raise _wrong("_rebuild_parameter")


def _from_type(args: tuple[object, ...]) -> object:
    """(function, class, its arguments, attributes): a tensor with attributes, or of a class derived from it."""
    match args:
        case (Function() as function, kind, tuple(inner), *_) if function.name in _REBUILD:
            plain = kind is _PARAMETER or (isinstance(kind, Stranger) and kind.name == "torch.Tensor")
            return function.run(inner) if plain else Unreadable("it is of a class derived from torch.Tensor")
        case _:
            raise _wrong("_rebuild_from_type_v2")


def _from_cpu_tensor(args: tuple[object, ...]) -> object:
    match args:
        case (PickledTensor() as tensor, Element() as dtype, *_):
            return tensor if dtype is tensor.element else Unreadable("it is converted while it is loaded")
        case _:
            raise _wrong("_rebuild_device_tensor_from_cpu_tensor")


def _unreadable(reason: str) -> Callable[[tuple[object, ...]], object]:
    return lambda args: Unreadable(reason)


def _size(args: tuple[object, ...]) -> object:
    return _sizes(args[0] if args else ())


def _encode(args: tuple[object, ...]) -> object:
    match args:
        case (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case _:
            raise Malformed("it makes bytes in an unknown way")


def _bytes(args: tuple[object, ...]) -> object:
    match args:
        case ():
            return b""
        case (bytes(data),):
            return data
        case (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case _:
            raise Malformed("it makes bytes in an unknown way")


def _reconstructor(args: tuple[object, ...]) -> object:
    match args:
        case (Stranger(name), _, _):
            return Inert(name)
        case (Function(name="collections.OrderedDict"), _, _):
            return {}
        case _:
            raise Refused("makes an object of a class that is not allowed")


def _numpy_type(args: tuple[object, ...]) -> object:
    match args:
        case (str(code), *_) if code.lstrip("<|=") in _NUMBERS:
            return NumpyType(code.lstrip("<|="))
        case (str(), *_):
            return NumpyType("")
        case _:
            raise _wrong("numpy.dtype")


def _numpy_scalar(args: tuple[object, ...]) -> object:
    match args:
        case (NumpyType(code), bytes(raw)) if code in _NUMBERS and len(raw) == struct.calcsize(_NUMBERS[code]):
            number: object = struct.unpack(_NUMBERS[code], raw)[0]
            return number
        case (NumpyType(), *_):
            return Inert("numpy scalar")
        case _:
            raise _wrong("numpy.scalar")


def _numpy_array(args: tuple[object, ...]) -> object:
    return Inert("numpy array")


def _wrong(name: str) -> Malformed:
    return Malformed(f"it calls {name} with arguments that torch does not write")


_NUMBERS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b", "u8": "<Q", "u4": "<I",
            "u2": "<H", "u1": "<B", "b1": "<?"}  # fmt: skip
_BY_CODE = {d.code: d for d in DType}
ELEMENTS = {name: Element(name, d := _BY_CODE[code], d.size) for name, (code, _) in _CODES.items()} | {
    name: Element(name, None, size) for name, (size, _) in _FOREIGN.items()
}
_PARAMETER = Function("torch.nn.parameter.Parameter", _parameter)
_NUMPY_TENSOR = _unreadable("its values are inside the pickle, not stored as a range of bytes")
_REBUILD: dict[str, Callable[[tuple[object, ...]], object]] = {
    "torch._utils._rebuild_tensor": _tensor_1,
    "torch._utils._rebuild_tensor_v2": _tensor_2,
    "torch._utils._rebuild_tensor_v3": _tensor_3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": _NUMPY_TENSOR,
    "torch._utils._rebuild_xla_tensor": _NUMPY_TENSOR,
    "torch._utils._rebuild_sparse_tensor": _unreadable("it is sparse"),
    "torch._utils._rebuild_nested_tensor": _unreadable("it is a nested tensor"),
    "torch._utils._rebuild_qtensor": _unreadable("it is quantised"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("it was saved from the meta device, without values"),
    "torch._utils._rebuild_wrapper_subclass": _unreadable("it is of a class derived from torch.Tensor"),
}
_FUNCTIONS = _REBUILD | {
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "torch.serialization._get_layout": lambda args: Inert("layout"),
    "torch.nn.modules.container.ParameterDict": lambda args: ParameterDict(),
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "copyreg._reconstructor": _reconstructor,
    "numpy.dtype": _numpy_type,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy._core.numeric._frombuffer": _numpy_array,
}
_TABLE: dict[str, object] = {
    **{name: Function(name, run) for name, run in _FUNCTIONS.items()},
    **{f"torch.{name}": element for name, element in ELEMENTS.items()},
    **{f"torch.{alias}": ELEMENTS[name] for alias, name in _ALIASES.items()},
    **{
        f"{module}.{prefix}Storage": StorageClass(f"{prefix}Storage", ELEMENTS[name])
        for name, (_, prefix) in [*_CODES.items(), *_FOREIGN.items()]
        if prefix
        for module in ("torch", "torch.cuda")
    },
    **{
        name: StorageClass("UntypedStorage", None)
        for name in ("torch.storage.UntypedStorage", "torch.UntypedStorage", "torch.cuda.UntypedStorage")
    },
    "torch.nn.parameter.Parameter": _PARAMETER,
    "torch.nn.Parameter": _PARAMETER,
}


# The model in the object


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

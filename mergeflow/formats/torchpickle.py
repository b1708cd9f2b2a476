"""The names that a torch pickle may use, and what is done in the place of each; all others are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

from mergeflow.formats.pickled import Function, Inert, Malformed, Refused, Stranger, plain_key
from mergeflow.formats.torchvalues import (
    Element,
    NumpyType,
    ParameterDict,
    PickledTensor,
    Storage,
    StorageClass,
    Unreadable,
)
from mergeflow.tensors import BY_CODE

_MAX_DIMS = 64

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
        case _:
            return _encode(args)


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

ELEMENTS = {name: Element(name, d := BY_CODE[code], d.size) for name, (code, _) in _CODES.items()} | {
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

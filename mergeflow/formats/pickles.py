"""Reading a pickle as data. A machine of our own, because no setting of the standard library's makes it one.

A pickle is a program for a small stack machine, and the standard one will import and call whatever it is told to.
This one has nothing to import or call with: a global is looked up in a table that the caller gives (`find`), and what
comes back is a mark of ours, never a Python function or class of that name. What is not in the table is refused when
it is named, before anything could be done with it.

The rest is about files that mean to hurt: no opcode allocates more than the bytes it was given, work is counted,
nothing recurses, and keys are such that neither hashing nor comparing them can be made slow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from mergeflow.errors import IntegrityError
from mergeflow.formats.pickled import Fillable, Function, Inert, Malformed, Refused, Stranger, plain_key
from mergeflow.formats.stream import Stream

PICKLE_LIMIT = 100_000_000  # bytes, for callers to end the stream at; that of a large model has a few million
OPCODE_LIMIT = 5_000_000  # a tensor takes about 25
WORK_LIMIT = 100_000_000  # characters and 100 × items handed to functions, which a memo would let a file repeat
_NUMBER_LIMIT = 255  # bytes or digits of one integer


def load(stream: Stream, find: Callable[[str, str], object | None], persistent: Callable[[object], object]) -> object:
    """The one object that the pickle at `stream` describes; the stream is left behind its last byte.

    `find` gives the mark for a global, or None for one that is not allowed. `persistent` resolves references to what
    is stored outside of the pickle.

    Raises:
        IntegrityError: with the path, what was found, and that nothing was executed where that could be feared.
    """
    path = stream.file.path
    try:
        return _Machine(stream, find, persistent).run()
    except Refused as error:
        raise IntegrityError(
            f"{path}: its pickle {error}; it was refused, and nothing was executed",
            hint="a model needs no such thing: do not open this file with programs that run pickles; "
            "if you trust it, convert it to safetensors where it was made",
        ) from None
    except Malformed as error:
        raise IntegrityError(f"{path}: its pickle is damaged: {error}") from None
    except IndexError:
        raise IntegrityError(f"{path}: its pickle is damaged: it takes from an empty stack") from None
    except KeyError:
        raise IntegrityError(f"{path}: its pickle is damaged: it refers to what is not there") from None
    except (TypeError, ValueError, OverflowError, RecursionError, struct.error) as error:
        raise IntegrityError(f"{path}: its pickle is damaged ({type(error).__name__})") from None


class _Machine:
    def __init__(
        self, stream: Stream, find: Callable[[str, str], object | None], persistent: Callable[[object], object]
    ) -> None:
        self._in, self._find, self._persistent = stream, find, persistent
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self._globals: dict[tuple[str, str], object] = {}
        self._work = 0

    def run(self) -> object:
        byte, operations = self._in.byte, _OPERATIONS
        for _ in range(OPCODE_LIMIT):
            opcode = byte()
            if opcode == 0x2E:  # STOP
                if len(self._stack) != 1 or self._marks:
                    raise Malformed("it leaves more or less than one object")
                return self._stack[0]
            operation = operations.get(opcode)
            if operation is None:
                raise Malformed(f"byte {self._in.position - 1:,} is no pickle opcode that a model uses ({opcode:#04x})")
            operation(self)
        raise Malformed("it is far larger than that of any model")

    # The stack

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        return self._stack.pop()

    def _to_mark(self) -> list[object]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_any(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _drop(self, _: object) -> None:
        """For what an opcode takes and does nothing with."""

    def _push_text(self, raw: bytes) -> None:
        self._stack.append(str(raw, "utf-8", "surrogatepass"))

    def _push_old_text(self, raw: bytes) -> None:
        """Python 2 did not tell text from bytes."""
        try:
            self._stack.append(str(raw, "utf-8"))
        except UnicodeDecodeError:
            self._stack.append(raw)

    def _sized(self, form: str) -> bytes:
        (n,) = struct.unpack(form, self._in.take(struct.calcsize(form)))
        if n < 0:
            raise Malformed("it has a text of negative length")
        return self._in.take(n)

    # Numbers

    def _number(self, form: str) -> None:
        self._stack.append(struct.unpack(form, self._in.take(struct.calcsize(form)))[0])

    def _long(self, n: int) -> None:
        if not 0 <= n <= _NUMBER_LIMIT:
            raise Malformed(f"it has a whole number of {n:,} bytes")
        self._stack.append(int.from_bytes(self._in.take(n), "little", signed=True))

    def _digits(self, what: str) -> str:
        line = self._in.line()
        if len(line) > _NUMBER_LIMIT:
            raise Malformed(f"it has {what} of {len(line):,} digits")
        return line.decode("ascii")

    def _int_line(self) -> None:
        text = self._digits("a whole number")
        self._stack.append({"00": False, "01": True}[text] if text in ("00", "01") else int(text))

    def _quoted(self) -> None:
        line = self._in.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise Malformed("it has a text without quotes")
        inner = line[1:-1]
        self._push_old_text(_unescaped(inner))

    # Containers

    def _tuple(self, n: int) -> None:
        if len(self._stack) < n:
            raise Malformed("it takes from an empty stack")
        self._stack[-n:] = [tuple(self._stack[-n:])]

    def _append(self, items: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Inert):
            raise Malformed("it appends to something that is no list")

    def _set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if len(items) % 2:
            raise Malformed("it has a key without a value")
        if type(target) is dict:
            target.update((plain_key(items[i]), items[i + 1]) for i in range(0, len(items), 2))
        elif not isinstance(target, Inert):
            raise Malformed("it sets items of something that is no mapping")

    def _new_dict(self) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._set_items(items)

    def _add_items(self) -> None:
        self._to_mark()
        if not isinstance(self._stack[-1], Inert):
            raise Malformed("it adds to something that is no set")

    def _frozen_set(self) -> None:
        self._to_mark()
        self._stack.append(Inert("frozenset"))

    # Names and calls

    def _global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("it names a global by something that is no text")
        found = self._globals.get((module, name))
        if found is None:
            found = self._find(module, name)
            if found is None:
                raise Refused(f"asks for {_shown(module)}.{_shown(name)}")
            self._globals[module, name] = found
        self._stack.append(found)

    def _global_lines(self) -> None:
        module = self._in.line().decode("utf-8")
        self._global(module, self._in.line().decode("utf-8"))

    def _stack_global(self) -> None:
        name = self._pop()
        self._global(self._pop(), name)

    def _inst(self) -> None:
        self._global_lines()
        mark = self._pop()
        self._call(mark, tuple(self._to_mark()))

    def _obj(self) -> None:
        items = self._to_mark()
        self._call(items[0], tuple(items[1:]))

    def _reduce(self) -> None:
        args = self._pop()
        self._call(self._pop(), args)

    def _new_with_names(self) -> None:
        names, args = self._pop(), self._pop()
        mark = self._pop()
        if names and not isinstance(mark, Stranger):
            raise Refused("passes arguments by name to something that takes none")
        self._call(mark, args)

    def _call(self, mark: object, args: object) -> None:
        if type(args) is not tuple:
            raise Malformed("it calls something with arguments that are no tuple")
        if isinstance(mark, Stranger):
            self._stack.append(Inert(mark.name))
        elif isinstance(mark, Function):
            for a in args:
                if isinstance(a, (str, bytes)):
                    self._work += len(a)
                elif isinstance(a, (list, dict)):
                    self._work += 100 * len(a)
            if self._work > WORK_LIMIT:
                raise Malformed("it takes far more work than that of any model")
            self._stack.append(mark.run(args))
        else:
            raise Refused(f"calls something that is no function ({_shown(getattr(mark, 'name', type(mark).__name__))})")

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, Fillable):
            target.build(state)
        elif not isinstance(target, Inert) and type(target) is not dict:  # an OrderedDict's attributes: nothing we need
            raise Refused(f"sets the state of something that has none ({type(target).__name__.lower()})")

    def _refuse_opcode(self, what: str) -> None:
        raise Refused(what)

    # The memo

    def _put(self, key: int) -> None:
        if key < 0:
            raise Malformed("its memo has a negative place")
        self._memo[key] = self._stack[-1]

    def _proto(self) -> None:
        version = self._in.byte()
        if version > 5:
            raise Malformed(f"it has protocol {version}, the newest known is 5")


def _shown(text: str) -> str:
    text = text if len(text) <= 80 else text[:79] + "…"
    return text if text.isprintable() else ascii(text)[1:-1]


def _unescaped(raw: bytes) -> bytes:
    """A Python 2 string literal without its escapes."""
    out, at = bytearray(), 0
    while at < len(raw):
        if raw[at] != 0x5C:
            out.append(raw[at])
            at += 1
        elif raw[at + 1 : at + 2] == b"x":
            out.append(int(raw[at + 2 : at + 4], 16))
            at += 4
        else:
            out.append(_ESCAPES[raw[at + 1]])
            at += 2
    return bytes(out)


_ESCAPES = {ord("\\"): 0x5C, ord("'"): 0x27, ord('"'): 0x22, ord("n"): 0x0A, ord("r"): 0x0D, ord("t"): 0x09}
_Op = Callable[[_Machine], None]


def _constant(value: object) -> _Op:
    return lambda m: m._stack.append(value)


_OPERATIONS: dict[int, _Op] = {
    ord("("): _Machine._mark,
    ord("0"): _Machine._pop_any,
    ord("1"): lambda m: m._drop(m._to_mark()),
    ord("2"): lambda m: m._push(m._stack[-1]),
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    # numbers
    ord("I"): _Machine._int_line,
    ord("L"): lambda m: m._push(int(m._digits("a whole number").rstrip("L"))),
    ord("F"): lambda m: m._push(float(m._digits("a number"))),
    ord("J"): lambda m: m._number("<i"),
    ord("K"): lambda m: m._push(m._in.byte()),
    ord("M"): lambda m: m._number("<H"),
    ord("G"): lambda m: m._number(">d"),
    0x8A: lambda m: m._long(m._in.byte()),
    0x8B: lambda m: m._long(struct.unpack("<i", m._in.take(4))[0]),
    # text and bytes
    ord("S"): _Machine._quoted,
    ord("T"): lambda m: m._push_old_text(m._sized("<i")),
    ord("U"): lambda m: m._push_old_text(m._sized("<B")),
    ord("V"): lambda m: m._push(str(m._in.line(), "raw-unicode-escape")),
    ord("X"): lambda m: m._push_text(m._sized("<I")),
    0x8C: lambda m: m._push_text(m._sized("<B")),
    0x8D: lambda m: m._push_text(m._sized("<Q")),
    ord("B"): lambda m: m._push(m._sized("<I")),
    ord("C"): lambda m: m._push(m._sized("<B")),
    0x8E: lambda m: m._push(m._sized("<Q")),
    0x96: lambda m: m._push(m._sized("<Q")),
    # containers
    ord(")"): _constant(()),
    ord("t"): lambda m: m._push(tuple(m._to_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("]"): lambda m: m._push([]),
    ord("l"): lambda m: m._push(m._to_mark()),
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._to_mark()),
    ord("}"): lambda m: m._push({}),
    ord("d"): _Machine._new_dict,
    ord("s"): lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m._set_items(m._to_mark()),
    0x8F: lambda m: m._push(Inert("set")),
    0x90: _Machine._add_items,
    0x91: _Machine._frozen_set,
    # names and calls
    ord("c"): _Machine._global_lines,
    0x93: _Machine._stack_global,
    ord("R"): _Machine._reduce,
    0x81: _Machine._reduce,  # NEWOBJ: our marks make no difference between a class and a function
    0x92: _Machine._new_with_names,
    ord("i"): _Machine._inst,
    ord("o"): _Machine._obj,
    ord("b"): _Machine._build,
    ord("Q"): lambda m: m._push(m._persistent(m._pop())),
    ord("P"): lambda m: m._refuse_opcode("refers to something outside by a plain text"),
    0x82: lambda m: m._refuse_opcode("asks for a function by its number in this machine's registry"),
    0x83: lambda m: m._refuse_opcode("asks for a function by its number in this machine's registry"),
    0x84: lambda m: m._refuse_opcode("asks for a function by its number in this machine's registry"),
    0x97: lambda m: m._refuse_opcode("refers to a buffer outside of the file"),
    0x98: lambda m: m._refuse_opcode("refers to a buffer outside of the file"),
    # the memo, and what wraps it all
    ord("p"): lambda m: m._put(int(m._digits("a place"))),
    ord("q"): lambda m: m._put(m._in.byte()),
    ord("r"): lambda m: m._put(struct.unpack("<I", m._in.take(4))[0]),
    0x94: lambda m: m._put(len(m._memo)),
    ord("g"): lambda m: m._push(m._memo[int(m._digits("a place"))]),
    ord("h"): lambda m: m._push(m._memo[m._in.byte()]),
    ord("j"): lambda m: m._push(m._memo[struct.unpack("<I", m._in.take(4))[0]]),
    0x80: _Machine._proto,
    0x95: lambda m: m._drop(m._in.take(8)),  # a frame's length: frames are a matter of reading ahead
}

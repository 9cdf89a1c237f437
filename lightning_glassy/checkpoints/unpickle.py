"""Read a pickle as data: an interpreter of its opcodes that imports and calls nothing.

The unpickler of Python calls every callable that a file names. Here a name stays a name. The few functions that make
tensors and plain containers are written anew in ``checkpoints/pickled.py``. All other names become an :class:`Opaque`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

Function = Callable[..., Any]


class Damaged(ValueError):
    """The bytes are no pickle that can be read."""


class Short(Damaged):
    """The pickle goes on after the last byte."""


class Opaque:
    """An object that is not made, because a name in the file would have to be called.

    Attributes:
        name: the name, such as ``argparse.Namespace``.
        args: the arguments of the call that is not made.
        state: the attributes that it would get.
        called: whether it would be called. Otherwise this is the class or function itself.
    """

    __slots__ = ("args", "called", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = (), called: bool = False) -> None:
        self.name, self.args, self.called = name, args, called
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def get(self, attribute: str) -> Any:
        """Return an attribute from the state, or ``None``."""
        return self.state.get(attribute) if isinstance(self.state, dict) else None


class Later:
    """An object that the state after it completes.

    Attributes:
        value: the object that takes its place in the end.
    """

    value: Any = None

    def complete(self, state: Any) -> None:
        """Take the state."""
        raise NotImplementedError


_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}
_RENAMED_BUILTINS = {"long": "int", "unicode": "str", "xrange": "range"}  # of Python 2
_MAKERS = ("copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg._reconstructor")  # of objects of a class
_PLAIN = (str, int, float, bool, bytes, complex, type(None))


class Unpickler:
    """Interpret one pickle.

    Args:
        data: bytes that begin with the pickle.
        functions: the function to run for a called name, by name.
        unknown: makes the object of any other name and its arguments. Default: an :class:`Opaque`.
        persistent: makes the object of a persistent id.

    Attributes:
        names: all names in the pickle.
        position: the end of the pickle, when it was read.
    """

    def __init__(
        self,
        data: bytes,
        functions: Mapping[str, Function],
        unknown: Function | None = None,
        persistent: Function | None = None,
        position: int = 0,
    ) -> None:
        self.data, self.position, self.names = data, position, dict[str, None]()
        self._functions, self._persistent = functions, persistent
        self._unknown = unknown or (lambda name, args: Opaque(name, args, called=True))
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        # An empty list takes one byte in a pickle and 64 in memory. Programs write no such pickles.
        self._left = 10**5 + len(data) // 2

    def load(self) -> Any:
        """Return the content of the pickle.

        Raises:
            Damaged: the bytes are no pickle, or a pickle that no program writes.
        """
        data, stack, memo, table = self.data, self._stack, self._memo, _TABLE
        position = self.position
        try:
            while True:
                code = data[position]
                # The most frequent opcodes are handled here: four of five.
                if code == _PUT_4:
                    self._put(_U4.unpack_from(data, position + 1)[0])
                    position += 5
                elif code == _GET_4:
                    stack.append(memo[_U4.unpack_from(data, position + 1)[0]])
                    position += 5
                elif code == _PUT_1:
                    self._put(data[position + 1])
                    position += 2
                elif code == _GET_1:
                    stack.append(memo[data[position + 1]])
                    position += 2
                elif code == _NUMBER_1:
                    stack.append(data[position + 1])
                    position += 2
                elif code == _STOP:
                    self.position = position + 1
                    return stack.pop()
                else:
                    self.position = position + 1
                    table[code](self)
                    position = self.position
        except (IndexError, struct.error):
            if max(position, self.position) + 5 >= len(data):
                raise Short("it ends too early") from None
            raise Damaged("its pickle is damaged") from None
        except KeyError:
            raise Damaged("its pickle has an opcode or a reference that is not known") from None
        except Damaged:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            raise Damaged("it calls a function with arguments that do not fit, or sets such a state") from None

    # ------------------------------------------------------------------ bytes

    def _take(self, n: int) -> bytes:
        start = self.position
        self.position = start + n
        if self.position > len(self.data):
            raise Short("it ends too early")
        return self.data[start : self.position]

    def _number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack_from(self.data, self.position)
        self.position += form.size
        return number

    def _line(self) -> Any:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Short("it ends too early")
        return _text(self._take(end + 1 - self.position)[:-1])

    def _count(self, n: int = 1) -> None:
        self._left -= n
        if self._left < 0:
            raise Damaged("its pickle makes far more objects than it has bytes for")

    # ------------------------------------------------------------------ opcodes

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _push_new(self, value: Any) -> None:
        self._count()
        self._stack.append(value)

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _tuple(self, n: int) -> None:
        if n > len(self._stack):
            raise Damaged("its pickle is damaged")
        self._count()
        self._stack[-n:] = [tuple(self._stack[-n:])]

    def _push_set(self, items: list[Any]) -> None:
        self._count(4)
        self._stack.append({item for item in items if is_key(item)})

    def _put(self, key: int) -> None:
        memo = self._memo
        if not memo and key == 1:
            memo.append(None)  # Python 2 counts from 1
        if key == len(memo):
            memo.append(self._stack[-1])
        else:  # a larger key would need memory for all keys below it
            memo[key] = self._stack[-1]

    def _put_next(self) -> None:
        self._count()
        self._memo.append(self._stack[-1])

    def _string(self, n: int) -> None:
        if n < 0:
            raise Damaged("its pickle is damaged")
        self._stack.append(_text(self._take(n)))

    def _integer(self, n: int) -> None:
        if n < 0:
            raise Damaged("its pickle is damaged")
        self._stack.append(int.from_bytes(self._take(n), "little", signed=True))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise Damaged("its pickle appends to a thing that is no list")

    def _appends(self) -> None:
        self._append(self._pop_mark())

    def _add(self) -> None:
        items, target = self._pop_mark(), self._stack[-1]
        if type(target) is set:
            target.update(item for item in items if is_key(item))
        elif not isinstance(target, Opaque):
            raise Damaged("its pickle adds to a thing that is no set")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if is_key(key):
                    target[key] = value
        elif not isinstance(target, Opaque):
            raise Damaged("its pickle sets items of a thing that is no dict")

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self) -> None:
        items = self._pop_mark()
        if len(items) % 2:
            raise Damaged("its pickle is damaged")
        self._set(items)

    def _dict(self) -> None:
        items = self._pop_mark()
        self._push_new({})
        if len(items) % 2:
            raise Damaged("its pickle is damaged")
        self._set(items)

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damaged("its pickle has a name that is no text")
        if module == "__builtin__":
            name = _RENAMED_BUILTINS.get(name, name)
        full = f"{_RENAMED.get(module, module)}.{name}"
        self.names[full] = None
        self._push_new(Opaque(full))

    def _stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _call(self, function: object, args: object) -> None:
        if isinstance(function, Opaque) and function.name in _MAKERS and isinstance(args, tuple) and args:
            function, args = args[0], args[1:]
        if not isinstance(function, Opaque) or function.called or not isinstance(args, tuple):
            raise Damaged("its pickle calls a thing that is no function")
        self._count()
        known = self._functions.get(function.name)
        self._stack.append(self._unknown(function.name, args) if known is None else known(*args))

    def _reduce(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._call(function, args)

    def _new_with_names(self) -> None:
        self._stack.pop()
        self._reduce()

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Opaque):
            target.state = state
        elif isinstance(target, Later):
            target.complete(state)

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise Damaged("its pickle refers to another file")
        self._push_new(self._persistent(self._stack.pop()))


def is_key(value: object, depth: int = 3) -> bool:
    """Return whether a value can be hashed and printed. The hash of nested tuples can take extremely long."""
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to print integers of thousands of digits
        return False
    if type(value) is tuple:
        return depth > 0 and len(value) < 100 and all(is_key(item, depth - 1) for item in value)
    return isinstance(value, (*_PLAIN, Opaque)) or type(value).__hash__ is object.__hash__


def _text(data: bytes) -> Any:
    """Return a string. Files of Python 2 have bytes in its place, which stay bytes if they are no text."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data


_U1, _U2, _U4, _U8, _I4, _F8 = map(struct.Struct, ("<B", "<H", "<I", "<Q", "<i", ">d"))
_PUT_4, _GET_4, _PUT_1, _GET_1, _NUMBER_1, _STOP = b"rjqhK."


def _opcodes() -> dict[int, Callable[[Unpickler], object]]:
    by_code: dict[bytes, Callable[[Unpickler], object]] = {
        b"\x80": lambda u: u._take(1),
        b"\x95": lambda u: u._take(8),  # the length of a frame
        b"N": lambda u: u._push(None),
        b"\x88": lambda u: u._push(True),
        b"\x89": lambda u: u._push(False),
        b"J": lambda u: u._push(u._number(_I4)),
        b"M": lambda u: u._push(u._number(_U2)),
        b"G": lambda u: u._push(u._number(_F8)),
        b"\x8a": lambda u: u._integer(u._number(_U1)),
        b"\x8b": lambda u: u._integer(u._number(_I4)),
        b"X": lambda u: u._string(u._number(_U4)),
        b"\x8c": lambda u: u._string(u._number(_U1)),
        b"\x8d": lambda u: u._string(u._number(_U8)),
        b"T": lambda u: u._string(u._number(_I4)),  # of Python 2
        b"U": lambda u: u._string(u._number(_U1)),
        b"B": lambda u: u._push(u._take(u._number(_U4))),
        b"C": lambda u: u._push(u._take(u._number(_U1))),
        b"\x8e": lambda u: u._push(u._take(u._number(_U8))),
        b"\x96": lambda u: u._push(u._take(u._number(_U8))),
        b"(": Unpickler._mark,
        b"0": Unpickler._pop,
        b"1": lambda u: u._pop_mark(),
        b"2": lambda u: u._push(u._stack[-1]),
        b"]": lambda u: u._push_new([]),
        b"}": lambda u: u._push_new({}),
        b"\x8f": lambda u: u._push_set([]),
        b")": lambda u: u._push(()),
        b"t": lambda u: u._push_new(tuple(u._pop_mark())),
        b"\x85": lambda u: u._tuple(1),
        b"\x86": lambda u: u._tuple(2),
        b"\x87": lambda u: u._tuple(3),
        b"l": lambda u: u._push_new(u._pop_mark()),
        b"d": Unpickler._dict,
        b"\x91": lambda u: u._push_set(u._pop_mark()),
        b"a": lambda u: u._append([u._stack.pop()]),
        b"e": Unpickler._appends,
        b"s": Unpickler._set_item,
        b"u": Unpickler._set_items,
        b"\x90": Unpickler._add,
        b"\x94": Unpickler._put_next,
        b"c": lambda u: u._name(u._line(), u._line()),
        b"\x93": Unpickler._stack_name,
        b"R": Unpickler._reduce,
        b"\x81": Unpickler._reduce,  # a new object of a class
        b"\x92": Unpickler._new_with_names,
        b"b": Unpickler._build,
        b"Q": Unpickler._persistent_id,
    }
    return {code[0]: run for code, run in by_code.items()}


_TABLE = _opcodes()


def check_tree(root: object) -> None:
    """Refuse dicts and lists that are nested without end, or that hold each other too often to visit all of them.

    Objects that were not made are left out of dicts. In lists and tuples they stay, or become ``None``.

    Raises:
        Damaged: the containers are no tree of a sensible size.
    """
    sizes: dict[int, int] = {}  # number of values below a container
    open_now: set[int] = set()
    todo: list[tuple[Any, bool]] = [(root, False)]
    total = 0
    while todo:
        value, after = todo.pop()
        if not isinstance(value, (dict, list, tuple)) or (id(value) in sizes and not after):
            continue
        if not after:
            if id(value) in open_now:
                raise Damaged("it holds a container that holds itself")
            open_now.add(id(value))
            if len(open_now) > 100:
                raise Damaged("it holds containers in more than 100 containers")
            todo.append((value, True))
            if isinstance(value, dict):
                for key, entry in [*value.items()]:
                    if isinstance(entry, Opaque) or isinstance(key, (Opaque, Later)):
                        del value[key]
                    elif isinstance(entry, Later):
                        value[key] = entry.value
            elif isinstance(value, list):
                value[:] = [entry.value if isinstance(entry, Later) else entry for entry in value]
                value[:] = [None if isinstance(entry, Opaque) else entry for entry in value]
            todo += [(entry, False) for entry in _entries(value) if isinstance(entry, (dict, list, tuple))]
            continue
        open_now.discard(id(value))
        below = [sizes[id(entry)] for entry in _entries(value) if isinstance(entry, (dict, list, tuple))]
        total += len(value)
        sizes[id(value)] = len(value) + sum(below)
    if sizes.get(id(root), 0) > 10**6 + 10 * total:
        raise Damaged("it holds the same containers too often")


def _entries(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Any:
    return value.values() if isinstance(value, dict) else value

"""Reads the plain data in a pickle and executes nothing.

A pickle is a program for a small stack machine, and some of its instructions import and call whatever the
file names: that is why a pickle from the network is never to be unpickled. MSVD's captions come as a pickle.
This is another machine, which knows only the instructions that make plain data: None, booleans, numbers,
strings, bytes, lists, tuples, dicts and sets. It has no instruction that looks up a name, so there is nothing
that a file could call; any other instruction is refused by its name.

The instructions are those of the standard library's `pickletools`, which explains each.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from training.errors import DatasetError

MAX_BYTES: Final = 64 << 20
"""MSVD's captions take 4 to 9 MB, by protocol."""

MAX_INSTRUCTIONS: Final = 4_000_000
"""MSVD's captions take 1.4 to 2 million. One makes 216 bytes at most that the file does not hold."""

MAX_DEPTH: Final = 100

_MARK: Final = object()
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS: Final = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
"""They push their argument, which `pickletools` decodes."""

_ASCII_STRINGS: Final = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
"""Strings of Python 2, bytes by today's names. As `pickle` does by default, only ASCII is taken."""

_EMPTY: Final[dict[str, Callable[[], Any]]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: Path) -> Any:
    """The data in a file. Raises DatasetError, naming the file; see `parse_plain_pickle`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return parse_plain_pickle(data)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def parse_plain_pickle(data: bytes) -> Any:
    """The data in a pickle of any protocol, 0 to 5, equal to what `pickle.loads` gives.

    Raises DatasetError for an instruction that does not make plain data (named, with its place), for data
    that holds itself or is nested more than MAX_DEPTH deep, for more than MAX_BYTES or MAX_INSTRUCTIONS, and
    for anything that is not a pickle.
    """
    if len(data) > MAX_BYTES:
        raise DatasetError(f"more than {MAX_BYTES >> 20} MiB of pickle are not read")
    machine = _Machine()
    with warnings.catch_warnings():
        # `pickletools` decodes the escapes of protocol 0 with a function that warns of unknown ones.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            for number, (opcode, argument, place) in enumerate(pickletools.genops(data)):
                if number >= MAX_INSTRUCTIONS:
                    raise DatasetError(f"more than {MAX_INSTRUCTIONS} pickle instructions are not read")
                machine.do(opcode.name, argument, place or 0)
        except (IndexError, KeyError):
            raise DatasetError("not a pickle that can be read: an instruction lacks its value") from None
        except (ValueError, TypeError) as error:  # Cut short, not UTF-8, a list as a key of a dict.
            raise DatasetError(f"not a pickle that can be read: {error}") from None
    return machine.result


class _Machine:
    """The stack and memo of a pickle in the making.

    A container is closed once it is inside another. Nothing is put into a closed one, so nothing can ever
    hold itself, and its depth is final. The same holds of its size: what it holds, and what that holds,
    counted each time that it occurs.
    """

    def __init__(self) -> None:
        self.result: Any = None
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._depths: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._hashed = 0
        self._closed: set[int] = set()
        self._containers: list[Any] = []  # Kept, so that an id() is that of one object for good.

    def do(self, name: str, argument: Any, place: int) -> None:
        """One instruction. Raises DatasetError, or what a broken pickle makes of it."""
        stack = self._stack
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _EMPTY:
            self._push_container(_EMPTY[name](), ())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._push_container(tuple(reversed([self._pop() for _ in range(_TUPLES[name])])))
        elif name in _ASCII_STRINGS:
            argument.encode("ascii")
            stack.append(argument)
        elif not self._do_with_mark(name):
            self._do_rare(name, argument, place)

    def _do_with_mark(self, name: str) -> bool:
        if name == "APPENDS":
            items = self._pop_to_mark()
            self._put_into(list, items).extend(items)
        elif name == "APPEND":
            items = [self._pop()]
            self._put_into(list, items).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._pop_to_mark()
            self._allow_hashing(items[::2])
            self._put_into(dict, items).update(_pairs(items))
        elif name == "ADDITEMS":
            items = self._pop_to_mark()
            self._allow_hashing(items)
            self._put_into(set, items).update(items)
        elif name == "LIST":
            self._push_container(self._pop_to_mark())
        elif name == "TUPLE":
            self._push_container(tuple(self._pop_to_mark()))
        elif name == "FROZENSET":
            items = self._pop_to_mark()
            self._allow_hashing(items)
            self._push_container(frozenset(items), items)
        elif name == "DICT":
            items = self._pop_to_mark()
            self._allow_hashing(items[::2])
            self._push_container(dict(_pairs(items)), items)
        else:
            return False
        return True

    def _do_rare(self, name: str, argument: Any, place: int) -> None:
        if name == "STOP":
            self.result = self._pop()
        elif name == "POP":
            self._stack.pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        elif name == "DUP":
            self._stack.append(self._top())
        elif name == "PROTO":
            if argument > 5:
                raise DatasetError(f"a pickle of protocol {argument} is not read, only 0 to 5")
        elif name != "FRAME":
            raise DatasetError(
                f"the pickle instruction {name} at byte {place} does not make plain data and was not carried"
                " out; nothing of this file was executed"
            )

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError("a mark where a value belongs")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _pop_to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("no mark on the stack")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _push_container(self, container: Any, items: Iterable[Any] | None = None) -> None:
        items = container if items is None else items
        self._containers.append(container)
        self._depths[id(container)], self._sizes[id(container)] = self._close(items)
        self._stack.append(container)

    def _put_into(self, kind: type, items: Iterable[Any]) -> Any:
        container = self._top()
        if type(container) is not kind:
            raise TypeError(f"items for a {kind.__name__} that is of type {type(container).__name__}")
        depth, size = self._close(items)
        if id(container) in self._closed:
            raise DatasetError("data that holds itself is not plain")
        self._depths[id(container)] = max(self._depths[id(container)], depth)
        self._sizes[id(container)] += size
        return container

    def _allow_hashing(self, items: Iterable[Any]) -> None:
        """Raises DatasetError where hashing would take long: a tuple that holds one tuple twice, which holds
        another twice, and so on, is small in the file and hashed in ages.
        """
        self._hashed += sum(self._sizes.get(id(item), 0) for item in items)
        if self._hashed > MAX_INSTRUCTIONS:
            raise DatasetError("tuples of this size are not read as keys")

    def _close(self, items: Iterable[Any]) -> tuple[int, int]:
        """Marks the containers among items as closed; the depth and the size of what holds them."""
        depth, size = 1, 0
        for item in items:
            size += 1
            if (inner := self._depths.get(id(item))) is not None:
                self._closed.add(id(item))
                depth = max(depth, inner + 1)
                size += self._sizes[id(item)]
        if depth > MAX_DEPTH:
            raise DatasetError(f"data nested more than {MAX_DEPTH} deep is not read")
        return depth, size


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))

"""The program's side of an examination: runs the program, and answers questions about what it made."""

from __future__ import annotations

import os
import sys
import types

from actors.sandbox.examination.wire import Wire

TYPE_CHECKING = False  # `typing` would take a third of the start
if TYPE_CHECKING:
    from typing import Any

WIDE = (
    "__len__",
    "__getitem__",
    "__setitem__",
    "__delitem__",
    "__contains__",
    "__enter__",
    "__exit__",
    "__neg__",
    "__pos__",
    "__invert__",
    "__abs__",
    "__add__",
    "__radd__",
    "__sub__",
    "__rsub__",
    "__mul__",
    "__rmul__",
    "__matmul__",
    "__truediv__",
    "__rtruediv__",
    "__floordiv__",
    "__mod__",
    "__pow__",
    "__and__",
    "__or__",
    "__xor__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
)


class Borrowed:
    """A function of the tests, in the program's process."""

    def __init__(self, wire: Wire, number: int) -> None:
        self.wire, self.number = wire, number

    def __call__(self, *arguments: Any) -> Any:
        self.wire.send({"call_back": self.number, "arguments": [self.wire.packed(each) for each in arguments]})
        answer = self.wire.receive()
        if "raised" in answer:
            raise RuntimeError(answer["raised"])
        return self.wire.unpacked(answer["value"])


class ProgramWire(Wire):
    def foreign(self, number: int, kind: str) -> Borrowed:
        return Borrowed(self, number)


def answer() -> None:
    """Runs the program, and answers questions about what it made until stdin closes."""
    wire = ProgramWire(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    wanted = wire.receive()
    module = sys.modules["program"] = types.ModuleType("program")
    namespace = module.__dict__
    answer_with(wire, lambda: exec(compile(wanted["program"], "program.py", "exec", dont_inherit=True), namespace), [])
    made = {name: namespace[name] for name in wanted["names"] if name in namespace}
    kinds: dict[str, Any] = {}
    for name, value in made.items():
        if isinstance(value, type) and issubclass(value, Exception):
            kinds[name] = {"exception": ancestors(value)}
        else:
            kinds[name] = {"value": wire.packed(value), "class": isinstance(value, type)}
    wire.send(kinds)
    while True:
        try:
            question = wire.receive()
        except EOFError:
            return
        arguments = [wire.unpacked(each) for each in question["arguments"]]
        keywords = {name: wire.unpacked(each) for name, each in question.get("keywords", {}).items()}
        answer_with(wire, lambda: OPERATIONS[question["ask"]](*arguments, **keywords), arguments)  # noqa: B023


def answer_with(wire: Wire, work: Any, arguments: list[Any]) -> None:
    """What the work returns, with what became of the lists, sets and dictionaries that it was given."""
    try:
        value = wire.packed(work())
        changed = {
            place: wire.packed(each)
            for place, each in enumerate(arguments)
            if type(each) in (list, dict, set, bytearray)
        }
        wire.send({"value": value, "changed": changed})
    except BaseException as error:
        wire.send({"raised": ancestors(type(error)), "text": str(error)[:1000]})


def ancestors(kind: type) -> list[str]:
    return [each.__name__ for each in kind.__mro__]


def method(name: str) -> Any:
    def ask(target: Any, *arguments: Any) -> Any:
        found = getattr(type(target), name)(target, *arguments)
        if found is NotImplemented:
            raise TypeError(name)
        return found

    return ask


OPERATIONS: dict[str, Any] = {
    "call": lambda target, *arguments, **keywords: target(*arguments, **keywords),
    "attribute": getattr,
    "set_attribute": setattr,
    "is_instance": isinstance,
    "iter": iter,
    "next": next,
    "bool": bool,
    "str": str,
    "repr": repr,
    "hash": hash,
    "equal": lambda one, other: bool(one == other),
    **{name: method(name) for name in WIDE},
}

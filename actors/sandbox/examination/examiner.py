"""The tests' side of an examination."""

from __future__ import annotations

import builtins
import json
import os
import sys

from actors.sandbox.examination.answers import WIDE
from actors.sandbox.examination.wire import Wire

TYPE_CHECKING = False  # `typing` would take a third of the start
if TYPE_CHECKING:
    from typing import Any, BinaryIO

COMPARISONS = ("__lt__", "__le__", "__gt__", "__ge__")
ANSWERS_MAY_BE_PLAIN = ("__len__", "__getitem__", "__contains__", "__enter__", "__exit__", *COMPARISONS)


class Remote:
    """An object of the program, for tests.

    Compared with a value of the tests it is unequal, and neither smaller nor larger: the program is not asked.
    """

    def __init__(self, wire: ExaminerWire, number: int) -> None:
        object.__setattr__(self, "_wire", wire)
        object.__setattr__(self, "_number", number)

    def _ask(self, what: str, *arguments: Any, **keywords: Any) -> Any:
        return self._wire.ask(what, self, *arguments, **keywords)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attribute", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set_attribute", name, value)

    def __instancecheck__(self, other: Any) -> bool:
        return isinstance(other, Remote) and self._wire.ask("is_instance", other, self) is True

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __bool__(self) -> bool:
        return self._ask("bool") is True

    def __str__(self) -> str:
        return plain(self._ask("str"), str)

    def __repr__(self) -> str:
        return plain(self._ask("repr"), str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._number == other._number

    def __hash__(self) -> int:
        return self._number


class WideRemote(Remote):
    """One of a class that the tests name, so that they expect its operators. With values of theirs these give objects, not values."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._ask("equal", other) is True

    def __hash__(self) -> int:
        return plain(self._ask("hash"), int)


def plain(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"no {kind.__name__}")
    return value


def operator(name: str) -> Any:
    def ask(self: WideRemote, *others: Any) -> Any:
        both = all(isinstance(other, Remote) for other in others)
        if name in COMPARISONS and not both:
            return NotImplemented
        answer = self._ask(name, *others)
        if not (both and others) and name not in ANSWERS_MAY_BE_PLAIN and not isinstance(answer, Remote):
            raise TypeError(f"{name} of the program's object and a value gave a value")
        return answer

    return ask


for _name in WIDE:
    setattr(WideRemote, _name, operator(_name))


class ExaminerWire(Wire):
    """The tests' end. Each question waits for its answer, and serves what the program calls back meanwhile."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        super().__init__(source, sink)
        self.classes: set[str] = set()
        self.exceptions: dict[str, type[Exception]] = {}

    def foreign(self, number: int, kind: str) -> Remote:
        return (WideRemote if kind in self.classes else Remote)(self, plain(number, int))

    def reference(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"own": value._number}
        if not callable(value):
            raise TypeError(f"a {type(value).__name__} cannot be passed to the program")
        return super().reference(value)

    def ask(self, what: str, *arguments: Any, **keywords: Any) -> Any:
        packed = {name: self.packed(each) for name, each in keywords.items()}
        self.send({"ask": what, "arguments": [self.packed(each) for each in arguments], "keywords": packed})
        return self.answer(arguments)

    def answer(self, arguments: Any = ()) -> Any:
        while "call_back" in (answer := self.receive()):
            self.call_back(answer)
        if "raised" in answer:
            raise self.exception(answer["raised"])(str(answer.get("text")))
        for place, value in answer.get("changed", {}).items():
            update(arguments[int(place)], self.unpacked(value))
        return self.unpacked(answer["value"])

    def call_back(self, question: dict[str, Any]) -> None:
        try:
            value = self.own[question["call_back"]](*map(self.unpacked, question["arguments"]))
            self.send({"value": self.packed(value)})
        except Exception as error:
            self.send({"raised": type(error).__name__})

    def exception(self, names: list[str]) -> type[Exception]:
        """The nearest that is known here: of the program, or of Python; never one that ends a process."""
        for name in names:
            known = self.exceptions.get(name) or getattr(builtins, str(name), None)
            if isinstance(known, type) and issubclass(known, Exception):
                return ValueError if issubclass(known, UnicodeError) else known  # those take more than a text
        return RuntimeError

    def load(self, program: str, names: list[str]) -> dict[str, Any]:
        """What the program made of these names."""
        self.send({"program": program, "names": names})
        self.answer()
        made = self.receive()
        for name in [name for name in names if name in made]:
            # The program may call anything a class; a test that calls a function by such a name is not to be feared.
            if made[name].get("class") is True and name[:1].isupper():
                self.classes.add(name)
            if "exception" in made[name]:
                self.exceptions[name] = type(name, (self.exception(made[name]["exception"][1:]),), {})
        values = {name: self.unpacked(made[name]["value"]) for name in names if "value" in made.get(name, {})}
        return {**values, **self.exceptions}


def update(target: Any, value: Any) -> None:
    """A container of the tests becomes what the program made of it."""
    if type(target) is not type(value):
        return
    if isinstance(target, (list, bytearray)):
        target[:] = value
    elif target != value:
        target.clear()
        target.update(value)


def examine(program: str) -> None:
    """program: the file of the whole, which the other process is started from.

    Reads one line of JSON from stdin: `nonce`, `program`, `names` (which of the program's names the tests use) and `steps`, each with its
    `source` and whether it is a `test`. Writes nonce and `ready`, then for each test, as soon as it is through: nonce, place, 1 or 0.
    The program knows no nonce, and has no handle of this stdout either.
    """
    import ctypes
    import subprocess

    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # nobody of the same user may look into this process
    asked = json.loads(sys.stdin.readline())
    print(asked["nonce"], "ready", flush=True)
    command = [sys.executable, "-s", "-B", program, "answer"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None and child.stdin is not None
    wire = ExaminerWire(child.stdout, child.stdin)  # type: ignore[arg-type]
    report, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - what tests print goes nowhere
    try:
        namespace: dict[str, Any] | None = {"__name__": "tests", **wire.load(asked["program"], asked["names"])}
    except Exception:
        namespace = None
    for place, step in enumerate(asked["steps"]):
        passed = namespace is not None and succeeds(step["source"], namespace)
        if step["test"]:
            print(asked["nonce"], place, int(passed), file=report, flush=True)
        elif not passed:
            namespace = None
    os._exit(0)


def succeeds(source: str, namespace: dict[str, Any]) -> bool:
    try:
        exec(compile(source, "tests.py", "exec", dont_inherit=True), namespace)
    except Exception:
        return False
    return True

"""The verifier `code` pays for programs that pass, and for nothing else that they do."""

import json
import re
from typing import Any

import pytest

from actors.config import RewardsConfig
from actors.prompts.prompt import Prompt
from actors.rewards.pool import RewardPool
from actors.rewards.protocol import Attempt, Verdict
from actors.sandbox.local import LocalSandbox
from actors.sandbox.program import Limits, Outcome, Program, SandboxError
from actors.verifiers import get_verifier, refuse_gold
from actors.verifiers.code import CodeVerifier
from actors.verifiers.code_tests import Cases, UnitTests, gold_tests, program_in, same_output
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def prompt(gold: Any) -> Prompt:
    return Prompt("id", "source", "text", gold if isinstance(gold, str) else json.dumps(gold), "code")


async def judged(sandbox: Any, gold: Any, program: str, share: bool = True, seconds: float = 30.0) -> Verdict:
    verifier = CodeVerifier(sandbox, share, Limits(wall_s=seconds, cpu_s=1))
    return await verifier.judge_one(prompt(gold), Attempt(f"So:\n```python\n{program}\n```\n"))


ADD = "assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add([1], [2]) == [1, 2]\nassert add(0.1, 0.2) > 0.3\n"

RIGHT = {
    "a function": (ADD, "def add(a, b):\n    return a + b"),
    "a lambda that prints and has a main": (
        ADD,
        "add = lambda a, b: a + b\nprint('x')\nif __name__ == '__main__':\n    input()",
    ),
    "a list changed in place": (
        "numbers = [3, 1, 2]\nput_in_order(numbers)\nassert numbers == [1, 2, 3]\nassert put_in_order(numbers) is None",
        "def put_in_order(numbers):\n    numbers.sort()",
    ),
    "a dictionary and a set changed in place": (
        "d, s = {'a': 1}, {1}\nboth(d, s)\nassert d == {'b': (1, None)} and s == {1, b'x'}",
        "def both(d, s):\n    d['b'] = (d.pop('a'), None)\n    s.add(b'x')",
    ),
    "an exception": (
        "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'negative'",
        "def f(x):\n    raise ValueError('negative')",
    ),
    "an exception of its own": (
        "try:\n    f()\n    assert False\nexcept TooMuch:\n    pass",
        "class TooMuch(KeyError):\n    pass\ndef f():\n    raise TooMuch('x')",
    ),
    "a class": (
        "s = Stack()\ns.push(1)\ns.push('b')\nassert s.pop() == 'b' and len(s) == 1\nassert 1 in s\nassert isinstance(s, Stack)\n"
        "assert s.items == [1]\ns.name = 'n'\nassert s.name == 'n'\nassert not isinstance(3, Stack)",
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n"
        "    def pop(self):\n        return self.items.pop()\n    def __len__(self):\n        return len(self.items)\n"
        "    def __contains__(self, x):\n        return x in self.items",
    ),
    "operators": (
        "v = Vector(1, 2)\nassert v + Vector(1, 1) == Vector(2, 3)\nassert v * 2 == Vector(2, 4)\nassert v != Vector(0, 0)\nassert v @ v == 5\n"
        "assert str(v) == '<1 2>' and {v: 1}[Vector(1, 2)] == 1",
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Vector:\n    x: int\n    y: int\n    def __add__(self, o):\n"
        "        return Vector(self.x + o.x, self.y + o.y)\n    def __mul__(self, n):\n        return Vector(self.x * n, self.y * n)\n"
        "    def __matmul__(self, o):\n        return self.x * o.x + self.y * o.y\n    def __str__(self):\n        return f'<{self.x} {self.y}>'",
    ),
    "a generator": (
        "assert list(count(3)) == [0, 1, 2]\nassert next(count(1)) == 0",
        "def count(n):\n    yield from range(n)",
    ),
    "a function that is given one": (
        "assert twice(lambda x: x + [1], []) == [1, 1]\nassert twice(f=abs, x=-3) == 3",
        "def twice(f, x):\n    return f(f(x))",
    ),
    "large and odd values": (
        "assert f(10**400) == 10**400 + 1\nassert g() != g()\nassert h(float('inf')) == (float('inf'), 1j, frozenset({1}), range(3), True)",
        "def f(n):\n    return n + 1\ndef g():\n    return float('nan')\ndef h(x):\n    return x, 1j, frozenset({1}), range(3), True",
    ),
    "HumanEval's form": (
        {
            "tests": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9",
            "entry_point": "square",
        },
        "def square(x):\n    return x * x",
    ),
    "a list of tests": (
        ["assert f(1) == 1", "x = 2\nassert f(x) == 2", "def test_it():\n    assert f(3) == 3"],
        "def f(x):\n    return x",
    ),
    "what the tests need first": (
        {"setup": "import math\nTAU = 2 * math.pi", "tests": "assert abs(turn() - TAU) < 1e-9"},
        "import math\ndef turn():\n    return math.tau",
    ),
    "runs": (
        {"cases": [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 5\n", "stdout": "10\n"}]},
        "a, b = map(int, input().split())\nprint(a + b)",
    ),
    "runs in two columns": ({"inputs": ["x", "y"], "outputs": ["x \n\n", "y"]}, "import sys\nprint(sys.stdin.read())"),
}


@pytest.mark.parametrize("name", RIGHT)
async def test_a_right_program_is_paid(sandbox: LocalSandbox, name: str) -> None:
    gold, program = RIGHT[name]
    verdict = await judged(sandbox, gold, program)
    assert verdict.reward == 1.0, verdict


ALWAYS = """
class Always:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __getattr__(self, name): return lambda *_: self
    def __call__(self, *_): return self
    def __contains__(self, x): return True
    def __len__(self): return 3
    def __iter__(self): return iter([self] * 3)
    def __float__(self): return 0.0
    def __index__(self): return 0
for name in "lt le gt ge add radd sub rsub mul rmul truediv abs round neg mod getitem".split():
    setattr(Always, f"__{name}__", lambda self, *_: self)
def add(a, b):
    return Always()
"""

FORGED = {
    "prints what success looks like": "print('ready\\n0 1\\n1 1\\n2 1\\n3 1\\nOK\\nPASSED')\ndef add(a, b): print('0 1')",
    "ends well": "import os\nos._exit(0)",
    "ends well when asked": "import os, sys\ndef add(a, b): os._exit(0)",
    "raises SystemExit": "import sys\nsys.exit(0)",
    "returns what is equal to all": ALWAYS,
    "has a float that is equal to all": "class F(float):\n    __eq__ = lambda s, o: True\n    __gt__ = __eq__\ndef add(a, b): return F(0)",
    "has an int that is equal to all": "class I(int):\n    __eq__ = lambda s, o: True\ndef add(a, b): return I(0)",
    "has a list that is equal to all": "class L(list):\n    __eq__ = lambda s, o: True\ndef add(a, b): return L()",
    "patches assertions": "import builtins, sys\nbuiltins.AssertionError = type('A', (Exception,), {})\nsys.excepthook = lambda *_: None\n"
    "builtins.exec = builtins.compile = builtins.print = lambda *_: None\ndef add(a, b): return 0",
    "redefines what tests use": "def len(x): return 3\ndef list(x): return [1, 2]\ndef isinstance(*_): return True\ndef add(a, b): return 0",
    "reads the tests in its frames": "import sys, gc\ndef add(a, b):\n    frame = sys._getframe()\n    text = ''\n    while frame:\n        text += repr(frame.f_locals)\n"
    "        frame = frame.f_back\n    for o in gc.get_objects():\n        if type(o) in (str, dict, list): text += repr(o)[:10000]\n"
    "    return a + b if 'add(2, 2)' + ' == 4' in text else None",
    "reads the tests in files and streams": "import os, sys, glob\ndef add(a, b):\n    for number in range(3, 64):\n        try:\n            os.lseek(number, 0, 0)\n"
    "            if b'assert' in os.read(number, 10**6): return a + b\n        except OSError: pass\n    text = ''.join(open(f, errors='replace').read() for f in glob.glob('/*.py') + glob.glob('/tmp/*'))\n"
    "    return a + b if 'add(' + '1, 2)' in text else None",
    "writes to every descriptor": "import os\nfor n in range(64):\n    for line in (b'0 1\\n', b'{\"value\": 3}\\n'):\n        try: os.write(n, line * 100)\n        except OSError: pass\nadd = None",
    "answers before it is asked": 'import os\nfor n in range(3, 64):\n    try: os.write(n, b\'{"value": 3, "changed": {}}\\n\' * 9)\n    except OSError: pass\ndef add(a, b): return 0',
    "claims objects of the tests": 'import json, os\nos.write(3, b\'{"value": {"own": 0}}\\n\')\nos.write(4, b\'{"value": {"object": "x"}}\\n\')\ndef add(a, b): return 0',
    "kills who asks": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nadd = lambda a, b: 0",
    "stops who asks": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nadd = lambda a, b: 0",
    "looks into who asks": "import ctypes, os\nlibc = ctypes.CDLL(None)\nlibc.ptrace(16, os.getppid(), 0, 0)\nopen(f'/proc/{os.getppid()}/mem')\nadd = lambda a, b: 0",
    "never ends": "while True: pass",
    "never answers": "def add(a, b):\n    while True: pass",
    "answers without end": "def add(a, b): return 'x' * 10**8",
    "answers too deep": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "answers in circles": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "is no program": "Sorry, I cannot.",
    "is nothing": "",
}


@pytest.mark.parametrize("name", FORGED)
async def test_nothing_but_passing_is_paid(sandbox: LocalSandbox, name: str) -> None:
    seconds = 1.5 if name == "stops who asks" else 30.0
    verdict = await judged(sandbox, ADD, FORGED[name], seconds=seconds)
    assert verdict.reward == 0.0, verdict


async def test_an_object_without_end_is_no_member_of_what_tests_expect(sandbox: LocalSandbox) -> None:
    gold = "assert f(1) in (5, 6)\nassert abs(f(1) - 2.5) < 1e-6\nassert f(1) < f(2)\nassert 5 in f(1) or f(1)[0] == 5\nassert f(1) == f(2)"
    verdict = await judged(sandbox, gold, ALWAYS.replace("add(a, b)", "f(a)").replace("iter([self] * 3)", "iter([])"))
    assert verdict.reward == 0.0, verdict


async def test_runs_are_compared_by_what_they_write_and_must_end_well(sandbox: LocalSandbox) -> None:
    gold = {"cases": [{"stdin": "1", "stdout": "1"}, {"stdin": "2", "stdout": "2"}]}
    for program, share in (
        ("print(1)", 0.5),
        ("print(input()); exit(1)", 0.0),
        ("import os; os._exit(0)", 0.0),
        ("print(input(), flush=True)\nwhile True: pass", 0.0),
        ("import sys; print(sys.stdin.read(), 'and more')", 0.0),
    ):
        assert (await judged(sandbox, gold, program)).reward == share


async def test_a_share_is_paid_where_it_is_asked_for(sandbox: LocalSandbox) -> None:
    half = "def add(a, b):\n    if isinstance(a, list): raise ValueError\n    return 3 if a == 1 else a + b if a == 0.1 else 0"
    assert (await judged(sandbox, ADD, half)).reward == 0.5
    assert (await judged(sandbox, ADD, half, share=False)).reward == 0.0
    stuck = "def add(a, b):\n    if a == 2:\n        while True: pass\n    return a + b"
    verdict = await judged(sandbox, ADD, stuck)
    assert (verdict.reward, verdict.note) == (0.25, "1 of 4 tests")


async def test_an_error_of_the_sandbox_is_an_error_and_no_reward() -> None:
    class Broken:
        def __init__(self, outcome: Outcome | None) -> None:
            self.outcome = outcome

        def run(self, program: Program) -> Outcome:
            if self.outcome is None:
                raise SandboxError("gone")
            return self.outcome

    verdict = await judged(Broken(None), ADD, "")
    assert verdict.reward is None and "gone" in str(verdict.error)
    unstarted = Outcome("ended", 127, "ready\n0 1\n", "no Python here", 0.1, 0.1)
    verdict = await judged(Broken(unstarted), ADD, "")
    assert verdict.reward is None and "no Python here" in str(verdict.error)


async def test_it_works_in_the_processes_that_verifiers_run_in() -> None:
    """Which have namespaces of their own, and limits."""
    pool = RewardPool(RewardsConfig(processes=1, timeout_s=60.0))
    await pool.start(["code"])
    good, bad = await pool.judge(prompt(ADD), [Attempt(RIGHT["a function"][1]), Attempt(ALWAYS)])
    await pool.close()
    assert (good.reward, bad.reward) == (1.0, 0.0)


def test_it_is_found_by_name_with_its_options() -> None:
    verifier = get_verifier('{"kind": "code", "reward": "share", "sandbox": {"kind": "none"}}')
    assert isinstance(verifier, CodeVerifier)


@pytest.mark.parametrize(
    "gold",
    ["x = 1", "assert (", "{", "[]", '{"cases": []}', '{"cases": [{"stdin": 1, "stdout": "1"}]}', '{"test": "assert f()"}', "{}", '{"inputs": ["1"], "outputs": []}', '{"cases": [{"stdin": "1"}]}', '{"tests": 3}'],
)  # fmt: skip
def test_gold_without_tests_is_refused(gold: str) -> None:
    with pytest.raises(ValueError):
        refuse_gold("code", gold)


def test_tests_are_counted_where_the_program_is_not() -> None:
    tests = gold_tests("import math\nassert f()\nfor x in (1, 2):\n    assert f(x)\ndef test_a():\n    assert g()\n")
    assert isinstance(tests, UnitTests)
    assert (tests.count, tests.names) == (3, ["f", "g", "test_a", "x"])
    cases = gold_tests('{"inputs": ["1"], "outputs": ["2"]}')
    assert isinstance(cases, Cases) and cases.cases[0].stdout == "2"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```\nx = 1\n```\nb\n```py\ny = 2\n```\nc", "y = 2\n"),
        ("a\n```python\nx = 1", "x = 1"),
        ("```python\nx = 1", "x = 1"),
        ("x = 1\n```\nThis works.", "x = 1"),
        ("```\na\n```\n```python\nb", "a\n"),
        ("", ""),
    ],
)
def test_the_program_is_the_last_fenced_block(completion: str, program: str) -> None:
    assert program_in(completion) == program


def test_output_is_the_same_but_for_white_space_at_ends() -> None:
    assert same_output("a  \nb\n\n", "a\nb")
    assert not same_output("a b", "a  b") and not same_output("", "a") and not same_output("a\n\nb", "a\nb")


SOLUTIONS = """
def double(x): return 2 * x
def add(a, b): return a + b
largest = max
def is_even(n): return n % 2 == 0
def square(n): return n * n
def first(items): return items[0]
def last(items): return items[-1]
def greet(name): return "Hello, " + name
def reverse(text): return text[::-1]
def count_letter(text, letter): return text.count(letter)
total = sum
def average(numbers): return sum(numbers) / len(numbers)
def evens(numbers): return [n for n in numbers if n % 2 == 0]
from math import factorial, gcd
def is_palindrome(text): return text == text[::-1]
def fibonacci(n):
    a, b = 0, 1
    for _ in range(n): a, b = b, a + b
    return a
def word_counts(text):
    return {word: text.split().count(word) for word in text.split()}
def is_prime(n): return n > 1 and all(n % d for d in range(2, n))
def merge(a, b): return sorted(a + b)
"""


async def test_every_problem_of_the_recipe_that_ships_can_be_solved_and_is_not_by_anything(
    sandbox: LocalSandbox,
) -> None:
    lines = (ROOT / "deploy/recipes/code/problems.jsonl").read_text().splitlines()
    assert len(lines) == 20
    for answer in (json.loads(line)["answer"] for line in lines):
        right = await judged(sandbox, answer, SOLUTIONS)
        assert right.reward == 1.0, (answer, right)
        assert all(step["test"] for step in gold_tests(answer).steps)  # type: ignore[union-attr]
    every_test = "\n".join(json.loads(line)["answer"] for line in lines)
    names = set(re.findall(r"assert (?:abs\()?(\w+)", every_test))
    constant = "\n".join(f"def {name}(*_): return ..." for name in names)
    assert (await judged(sandbox, every_test, constant)).note == f"0 of {every_test.count('assert')} tests"

"""What unit tests say of a program, worked out in a process that the program has no part in.

Tests and program never share a process: what a program returns comes to the tests as plain data, what it raises as a name, its objects as
references. So it cannot read the tests, nor what they expect, and no object of its making is asked whether it equals a value of theirs.
`examiner` runs the tests, `answers` the program, `wire` is between them; any sandbox runs the three as one `source`.
"""

from pathlib import Path

MODULES = ("wire", "answers", "examiner")
START = """
import sys, types
for name, text in TEXTS.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
if sys.argv[1:]:
    sys.modules["actors.sandbox.examination.answers"].answer()
else:
    sys.modules["actors.sandbox.examination.examiner"].examine(__file__)
"""


def source() -> str:
    """A program of its own, for any Python from 3.8. See `examiner.examine` for what it reads and writes."""
    texts = {
        f"{__name__}.{name}": Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in MODULES
    }
    return f"TEXTS = {texts!r}\n{START}"

"""The examples of docs/extending.md: each file in its place, each line in the registry's place, and then used."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from actors.engines import kinds
from actors.engines.create import create_engine
from actors.engines.protocol import GenerationRequest
from actors.environments import registry
from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt
from actors.verifiers import BUILT_IN, get_verifier
from actors.weights.block import pack
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE | re.DOTALL
)
Example = Callable[[str], tuple[ModuleType, str]]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Example:
    """The module of a file on the page, put where the page says, and the registry's line below it."""

    def place(path: str) -> tuple[ModuleType, str]:
        (index,) = [i for i, block in enumerate(BLOCKS) if block.startswith(f"# {path}\n")]
        name = path.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(BLOCKS[index], path, "exec"), module.__dict__)
        return module, BLOCKS[index + 1]

    return place


def union_of(line: str, *namespaces: ModuleType) -> TypeAdapter:
    """What a recipe's section is read with once the line stands in the registry."""
    from pydantic import Field

    known = {name: value for module in namespaces for name, value in vars(module).items()} | {"Field": Field}
    exec(line, known)
    (name,) = re.findall(r"^(\w+) =", line)
    return TypeAdapter(known[name])


async def test_a_verifier(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    _, line = example("actors/verifiers/brackets.py")
    for name, path in eval(f"{{{line}}}").items():
        monkeypatch.setitem(BUILT_IN, name, path)
    prompt = Prompt("p", "s", "brackets, please", None, "brackets")
    attempts = [Attempt(text, index) for index, text in enumerate(("(())", "())(", "a()"))]
    verdicts = await get_verifier("brackets").judge(prompt, attempts)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.5, 0.5]


async def test_an_environment(example: Example) -> None:
    module, line = example("actors/environments/hangman.py")
    section = union_of(line, registry, module)
    assert section.validate_python("single_turn").kind == "single_turn"
    assert section.validate_python("hangman").guesses == 8
    prompt = Prompt("p", "s", "A fruit", "fig", "exact")
    for said, reward in ((["f", "x", "i", "g"], 1.0), (["f", "x", "y"], 0.0)):
        game = section.validate_python({"kind": "hangman", "guesses": 2}).create()
        assert (await game.reset(prompt, seed=0)).text == "A fruit\n___"
        turns = [await game.step(reply, timeout_s=5.0) for reply in said]
        assert [turn.done for turn in turns] == [False] * (len(said) - 1) + [True] and turns[-1].reward == reward
        assert turns[0].text == "f__"
        await game.close()


async def test_an_engine(example: Example) -> None:
    module, line = example("actors/engines/parrot.py")
    options = union_of(line, kinds, module).validate_python({"kind": "parrot", "words": 2})
    engine = create_engine(SimpleNamespace(engine=options, gpus=0, cpus=1), "no policy", seed=0, index=0)  # type: ignore[arg-type]
    await engine.start()
    (first, second) = await engine.generate(GenerationRequest("r", (4, 7), n=2, max_tokens=5))
    assert first.token_ids.tolist() == second.token_ids.tolist() == [7, 7]
    offer, blob = pack([("weight", torch.ones(2))], version=3)
    await engine.take_weights(replace(offer, address=np.array(blob)), "keep")
    assert engine.policy_version == 3
    await engine.close()

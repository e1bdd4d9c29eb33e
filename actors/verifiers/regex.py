"""The verifier `regex`: the completion matches a regular expression of the recipe."""

import re

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import VerifierFunction
from actors.verifiers.exact import unwrapped
from actors.verifiers.gold import gold_answer

ANSWER = "answer"


def regex(pattern: str) -> VerifierFunction:
    """1 if the pattern is found in the completion and its group `answer`, where it has one, holds the gold answer in the last match.

    A pattern that takes long on some text is ended by `rewards.timeout_s`, and is an error.
    """
    compiled = re.compile(pattern, re.DOTALL)
    compares = ANSWER in compiled.groupindex

    def judge(prompt: Prompt, completion: str) -> float:
        if not compares:
            return float(compiled.search(completion) is not None)
        gold, last = unwrapped(gold_answer(prompt)), None
        for match in compiled.finditer(completion):
            last = match[ANSWER]
        return float(last is not None and unwrapped(last) == gold)

    return judge

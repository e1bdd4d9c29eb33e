"""The verifier `http`: a service judges the completion."""

from typing import Any

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import FunctionVerifier, Unscored, Value
from actors.verifiers.service import Service


def http(
    url: str, key: str | None = None, seconds: float = 8.0, tries: int = 3, concurrent: int = 32
) -> FunctionVerifier:
    """What the service at `url` says of a completion: a number, true or false, or an object of numbers as a function may return it;
    `{"error": "why"}` leaves the completion without a reward.

    It is sent `prompt`, `completion`, `answer` (null where there is none), `source`, `difficulty` and `row`.
    """
    service = Service(url, key, seconds, tries, concurrent)

    async def judge(prompt: Prompt, completion: str) -> Value:
        return await service.ask(
            {
                "prompt": prompt.text,
                "completion": completion,
                "answer": prompt.answer,
                "source": prompt.source,
                "difficulty": prompt.difficulty,
                "row": prompt.row,
            },
            _value,
        )

    return FunctionVerifier(judge, concurrent)


def _value(answer: Any) -> Value:
    if isinstance(answer, dict) and isinstance(why := answer.get("error"), str):
        raise Unscored(why)
    if not isinstance(answer, int | float | dict):
        raise ValueError(f"{answer!r:.80} is no number and no object of numbers")
    return answer

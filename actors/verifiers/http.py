"""The verifier `http`: a service judges the completion."""

import base64
import math
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import FunctionVerifier, Unscored, Value
from actors.verifiers.service import Service


def http(
    url: str, key: str | None = None, seconds: float = 8.0, tries: int = 3, concurrent: int = 32
) -> FunctionVerifier:
    """What the service at `url` says of a completion: a number, true or false, or an object of numbers as a function may return it;
    `{"error": "why"}` leaves the completion without a reward.

    It is sent `prompt`, `completion`, `answer` (null where there is none), `source`, `difficulty` and `row`, as `plain` has it.
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
                "row": plain(prompt.row),
            },
            _value,
        )

    return FunctionVerifier(judge, concurrent)


def plain(value: Any) -> Any:
    """A cell of a row as JSON can have it: dates as ISO 8601 and decimals as texts, bytes in base64, null for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(name): plain(cell) for name, cell in value.items()}
    if isinstance(value, list | tuple):
        return [plain(cell) for cell in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _value(answer: Any) -> Value:
    if isinstance(answer, dict) and isinstance(why := answer.get("error"), str):
        raise Unscored(why)
    if not isinstance(answer, int | float | dict):
        raise ValueError(f"{answer!r:.80} is no number and no object of numbers")
    return answer

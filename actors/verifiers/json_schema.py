"""The verifier `json_schema`: the completion is JSON of a form that the recipe gives."""

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema.validators import validator_for
from referencing import Registry

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import VerifierFunction

_FENCE = re.compile(r"^```[ \t]*(?:json)?[ \t]*\n", re.MULTILINE)


def json_schema(form: Mapping[str, Any]) -> VerifierFunction:
    """1 if the completion, or its last block fenced as code, is an instance of the schema; 0 if it is not, or is no JSON.

    References into other documents are not followed: nothing is fetched.
    """
    validator = validator_for(form)(form, registry=Registry())

    def judge(prompt: Prompt, completion: str) -> float:
        try:
            value = json.loads(_block(completion), parse_constant=_refuse)
            return float(validator.is_valid(value))
        except (ValueError, RecursionError):  # no JSON, or nested deeper than any form says
            return 0.0

    return judge


def _block(text: str) -> str:
    starts = [match.end() for match in _FENCE.finditer(text)]
    for start in reversed(starts[-2:]):  # the last fence may close the block that the one before it opens
        end = text.find("\n```", start)
        if end > 0:
            return text[start:end]
    return text


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")

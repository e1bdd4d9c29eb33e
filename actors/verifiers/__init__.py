"""Verifiers: what turns a completion into a reward. Found by name, or by dotted path for your own.

A new one is a file with a function (or with an object that judges whole groups, see `actors.rewards.protocol`), and its line here.
One with options is a function of them that returns such a thing: its line stands in WITH_OPTIONS, its model in `actors.verifiers.options`.
A prompt names its verifier by a text: a name, a dotted path, or `{"kind": name, options…}` as JSON.
"""

import difflib
import importlib
import json
from typing import Any

from actors.rewards.protocol import Verifier, as_verifier

BUILT_IN = {
    "exact": "actors.verifiers.exact:exact",
    "math": "actors.verifiers.math:math",
    "numeric": "actors.verifiers.numeric:numeric",
    "reasoning_gym": "actors.verifiers.reasoning_gym:task_score",
}

WITH_OPTIONS = {
    "choice": "actors.verifiers.choice:choice",
    "code": "actors.verifiers.code:code",
    "http": "actors.verifiers.http:http",
    "json_schema": "actors.verifiers.json_schema:json_schema",
    "judge": "actors.verifiers.judge:judge",
    "regex": "actors.verifiers.regex:regex",
    "weighted": "actors.verifiers.weighted:weighted",
}

GOLD_CHECKS = {
    "choice": "actors.verifiers.choice:refuse_gold_that_is_no_label",
    "code": "actors.verifiers.code:refuse_gold_without_tests",
    "exact": "actors.verifiers.exact:refuse_empty_gold",
    "math": "actors.verifiers.math:refuse_gold_that_cannot_be_read",
    "numeric": "actors.verifiers.numeric:refuse_gold_that_is_no_number",
    "weighted": "actors.verifiers.weighted:refuse_gold_of_members",
}
"""What a built-in verifier says of a gold answer before any completion is there: a function of it and of the verifier's options
that raises ValueError."""


class UnknownVerifierError(ValueError):
    """No verifier goes by this name."""


def get_verifier(name: str) -> Verifier:
    """The verifier that a prompt names. Imports its module."""
    refuse_unknown(name)
    kind, options = named(name)
    try:
        found = _imported(WITH_OPTIONS.get(kind) or BUILT_IN.get(kind) or kind)
        return as_verifier(found(**options) if kind in WITH_OPTIONS else found)
    except (ImportError, AttributeError) as error:
        raise UnknownVerifierError(f"verifier `{name}` cannot be loaded: {error}") from error
    except TypeError as error:
        raise UnknownVerifierError(f"verifier `{name}` is {error}") from error


def named(name: str) -> tuple[str, dict[str, Any]]:
    """Kind and options of the verifier that a prompt names."""
    if not name.startswith("{"):
        return name, {}
    options = json.loads(name)
    return options.pop("kind"), options


def refuse_unknown(name: str) -> None:
    """Raise UnknownVerifierError for what can be no verifier. Imports nothing: a `module:callable` may still not be there."""
    kind, _ = named(name)
    known = [*BUILT_IN, *WITH_OPTIONS]
    if kind not in known and ":" not in kind:
        close = difflib.get_close_matches(kind, known, n=1, cutoff=0.0)
        raise UnknownVerifierError(
            f"unknown verifier `{kind}`; did you mean `{close[0]}`? "
            f"Known are {', '.join(sorted(known))}, or give your own as `module:callable`"
        )


def refuse_gold(name: str, gold: str) -> None:
    """Raise ValueError for a gold answer that the built-in verifier of this name cannot compare anything with."""
    kind, options = named(name)
    if kind in GOLD_CHECKS:
        _imported(GOLD_CHECKS[kind])(gold, **options)


def _imported(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module_name), attribute)

"""Verifiers: what turns a completion into a reward. Found by name, or by dotted path for your own."""

import difflib
import importlib
from collections.abc import Callable, Mapping

from actors.prompts.feed import Prompt

Verifier = Callable[[Prompt, str], float | Mapping[str, float]]
"""Judges one completion of a prompt: its reward, or the named parts of it, whose sum is the reward.

Anything but finite numbers, and any exception, is an error and no reward.

A completion is hostile input: a verifier must not let it reach `eval`, a shell or a path.
"""

BUILT_IN = {
    "exact": "actors.verifiers.matching:exact",
    "numeric": "actors.verifiers.matching:numeric",
    "reasoning_gym": "actors.verifiers.reasoning_gym:task_score",
}


class UnknownVerifierError(ValueError):
    """No verifier goes by this name."""


def get_verifier(name: str) -> Verifier:
    """The verifier called `name`: a built-in one, or `module:callable`. Imports its module."""
    refuse_unknown(name)
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    try:
        verifier = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownVerifierError(f"verifier `{name}` cannot be loaded: {error}") from error
    if not callable(verifier):
        raise UnknownVerifierError(f"verifier `{name}` is a {type(verifier).__name__}, not a callable")
    return verifier


def refuse_unknown(name: str) -> None:
    """Raise UnknownVerifierError for what can be no verifier. Imports nothing: a `module:callable` may still not be there."""
    if name not in BUILT_IN and ":" not in name:
        close = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)
        raise UnknownVerifierError(
            f"unknown verifier `{name}`; did you mean `{close[0]}`? "
            f"Known are {', '.join(BUILT_IN)}, or give your own as `module:callable`"
        )

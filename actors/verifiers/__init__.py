"""Verifiers: what turns a completion into a reward. Found by name, or by dotted path for your own.

A new one is a file with a function (or with an object that judges whole groups, see `actors.rewards.protocol`), and its line here.
"""

import difflib
import importlib

from actors.rewards.protocol import Verifier, as_verifier

BUILT_IN = {
    "exact": "actors.verifiers.exact:exact",
    "numeric": "actors.verifiers.numeric:numeric",
    "reasoning_gym": "actors.verifiers.reasoning_gym:task_score",
}

GOLD_CHECKS = {
    "exact": "actors.verifiers.exact:refuse_empty_gold",
    "numeric": "actors.verifiers.numeric:refuse_gold_that_is_no_number",
}
"""What a built-in verifier says of a gold answer before any completion is there: a function that raises ValueError."""


class UnknownVerifierError(ValueError):
    """No verifier goes by this name."""


def get_verifier(name: str) -> Verifier:
    """The verifier called `name`: a built-in one, or `module:callable`. Imports its module."""
    refuse_unknown(name)
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    try:
        return as_verifier(getattr(importlib.import_module(module_name), attribute))
    except (ImportError, AttributeError) as error:
        raise UnknownVerifierError(f"verifier `{name}` cannot be loaded: {error}") from error
    except TypeError as error:
        raise UnknownVerifierError(f"verifier `{name}` is {error}") from error


def refuse_unknown(name: str) -> None:
    """Raise UnknownVerifierError for what can be no verifier. Imports nothing: a `module:callable` may still not be there."""
    if name not in BUILT_IN and ":" not in name:
        close = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)
        raise UnknownVerifierError(
            f"unknown verifier `{name}`; did you mean `{close[0]}`? "
            f"Known are {', '.join(BUILT_IN)}, or give your own as `module:callable`"
        )


def refuse_gold(name: str, gold: str) -> None:
    """Raise ValueError for a gold answer that the built-in verifier of this name cannot compare anything with."""
    if name in GOLD_CHECKS:
        module_name, _, attribute = GOLD_CHECKS[name].partition(":")
        getattr(importlib.import_module(module_name), attribute)(gold)

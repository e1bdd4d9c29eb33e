"""What an engine is told at its start of the adapters that will come. Imports neither torch nor vLLM."""

from dataclasses import dataclass

LARGEST_RANK = 512
"""Of an adapter that vLLM takes."""


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """Every version of the policy will be the one loaded at the start with an adapter of `rank` on those of its linear layers
    that the regular expression `targets` matches."""

    rank: int
    targets: str

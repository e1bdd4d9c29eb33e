"""What an evaluation of a policy says, as evaluations.jsonl has it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evaluation:
    """pass@1: the share of sampled completions that solve their prompt, averaged over prompts.

    `errors` counts completions without a reward; they are in no average.
    """

    pass_at_1: float | None
    """None where no completion has a reward."""
    sources: dict[str, float]
    prompts: int
    errors: int

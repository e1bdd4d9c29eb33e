"""What an evaluation of a policy says, as evaluations.jsonl has it."""

from dataclasses import dataclass, field


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
    half_width: float | None = None
    """Of the interval of pass@1 at 95 % by Student's t, were other prompts asked; None for fewer than two."""
    low: float | None = None
    """Of the same by `exact_interval`, which people are shown."""
    high: float | None = None
    pass_at_k: dict[str, float] = field(default_factory=dict)
    """By k, for powers of two from 2 on and for all samples, of prompts with so many rewards."""
    maj_at_k: dict[str, float] = field(default_factory=dict)
    """The same of whether the answer that most of the first k samples give is right."""
    length: float | None = None
    """Mean tokens of a completion."""
    truncated: float | None = None
    """Share of completions that a length limit ended."""

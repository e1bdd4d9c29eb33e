"""What an evaluation asks of a rollout worker, and what it gets: samples of a prompt, judged, that nobody trains on."""

from dataclasses import dataclass

from actors.verifiers.answers import LONGEST_ANSWER, boxed, marked, stated


@dataclass(frozen=True, slots=True)
class EvaluationDraw:
    """How samples are drawn for an evaluation."""

    samples: int
    """Of each prompt."""
    temperature: float
    """0 is greedy: all samples of a prompt are the same one."""
    top_p: float
    top_k: int
    """0 for all tokens."""
    max_tokens: int


@dataclass(frozen=True, slots=True)
class EvaluatedGroup:
    """n samples of one prompt. [n] each."""

    rewards: tuple[float | None, ...]
    errors: tuple[str | None, ...]
    """Why there is no reward, where there is none."""
    lengths: tuple[int, ...]
    """Tokens that were sampled."""
    truncated: tuple[bool, ...]
    answers: tuple[str | None, ...]
    """What each gives as its answer, for votes; None where it says nothing."""


def given_answer(text: str) -> str | None:
    """The answer that a completion gives: in its last box, behind its last marker or "the answer is", or else its last line."""
    marks = marked(text)
    lines = text.split("\n")
    found = (
        boxed(text) or (marks[-1] if marks else None) or stated(text) or next(filter(str.strip, reversed(lines)), "")
    )
    return " ".join(found[:LONGEST_ANSWER].split()).strip(" .*$") or None

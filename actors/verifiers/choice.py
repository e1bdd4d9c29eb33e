"""The verifier `choice`: the completion names the right one of several labels."""

import re
from collections.abc import Sequence

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import VerifierFunction
from actors.verifiers.answers import boxed, stated
from actors.verifiers.exact import unwrapped
from actors.verifiers.gold import gold_answer

LABELS = tuple("ABCDEFGHIJ")
_LABEL_FIRST = re.compile(
    r"[\s*_`$(\[{]{0,8}(?:\\(?:text|textbf|mathrm|mathbf)\s?\{\(?)?(?:(?:option|choice)\s{1,3}\(?)?(?P<label>\w{1,40})(?P<after>.{0,3})",
    re.IGNORECASE | re.DOTALL,
)


def choice(labels: Sequence[str] = LABELS) -> VerifierFunction:
    """1 if the completion's answer is the gold answer's label.

    Looked for in the last \\boxed{}, else behind the last "the answer is", "answer:" and the like, else the whole completion, or its
    last line, is a label, perhaps with what stands for it: `B`, `(B)`, `**B.**`, `B) Paris`. One that names two has none.
    """
    known = {label.casefold() for label in labels}

    def judge(prompt: Prompt, completion: str) -> float:
        gold = _label(gold_answer(prompt), known)
        if gold is None:
            refuse_gold_that_is_no_label(gold_answer(prompt), labels)
        return float(_chosen(completion, known) == gold)

    return judge


def refuse_gold_that_is_no_label(gold: str, labels: Sequence[str] = LABELS) -> None:
    """Raise ValueError where the gold answer is none of the labels."""
    if _label(gold, {label.casefold() for label in labels}) is None:
        raise ValueError(
            f"the gold answer {gold!r:.80} is none of the labels {', '.join(labels)} of the verifier `choice`; "
            "set its `labels`, or name the verifier `exact` for texts"
        )


def _chosen(completion: str, known: set[str]) -> str | None:
    box = boxed(completion)
    if box is not None:
        return _label(box, known)
    said = stated(completion)
    if said is not None and (label := _label(said, known)) is not None:
        return label
    lines = completion.strip().splitlines()
    return _label(lines[-1], known) if lines else None


def _label(text: str, known: set[str]) -> str | None:
    """The label that a text is, or begins with as `B)`, `B.`, `(B)` and `B:` do; None where it has none, or another behind it."""
    whole = unwrapped(text[:200])
    if whole in known:
        return whole
    first = _LABEL_FIRST.match(text)
    if first is None or first["label"].casefold() not in known:
        return None
    label = first["label"].casefold()
    if not re.match(r"\*{0,2}(?:[).:\]},]|\s?$|\n|\*\*)", first["after"]):
        return None
    others = re.findall(
        r"(?:\bor\b|\band\b|,|/)[\s*(]{0,4}(\w{1,40})\b", text[first.end("label") :][:60], re.IGNORECASE
    )
    return None if any(other.casefold() in known - {label} for other in others) else label

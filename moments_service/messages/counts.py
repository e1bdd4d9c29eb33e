"""What happened so far in a run, in numbers."""

from dataclasses import astuple, dataclass


@dataclass(slots=True)
class Counts:
    """Groups and completions that were submitted, completions without a reward, groups that were lost, groups trained on."""

    groups: int = 0
    completions: int = 0
    errors: int = 0
    lost: int = 0
    trained: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

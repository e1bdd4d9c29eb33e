"""What can go wrong in the learner, as the driver sees it."""


class LearnerError(RuntimeError):
    """The learner cannot go on; the message says what it was doing. Restart from a checkpoint."""


class RankError(LearnerError):
    """Learner ranks that stopped the others; `ranks` are their numbers."""

    def __init__(self, ranks: tuple[int, ...], what: str) -> None:
        self.ranks = ranks
        super().__init__(f"learner rank {', '.join(map(str, ranks))} {what}")


class RankDiedError(RankError):
    """Its process ended."""


class RankFailedError(RankError):
    """It raised; the cause of this error is what."""


class RankLateError(RankError):
    """It did not answer within its deadline."""


class OutOfMemoryError(LearnerError):
    """Memory ran out; the message names the microbatch's size, and the keys that make it fit."""


class DivergedError(LearnerError):
    """Too many updates in a row had a loss or gradient that is not finite. Go on from a checkpoint, with a lower learning rate."""


class CheckpointError(LearnerError):
    """A checkpoint cannot be written, or is not whole, or is of something else; the message says which, and what to do."""


class PayloadLostError(LearnerError):
    """Some groups' tokens died with their rollout actor. Nothing was trained: step again without `group_ids`."""

    def __init__(self, group_ids: tuple[str, ...]) -> None:
        self.group_ids = group_ids
        super().__init__(
            f"the payloads of {len(group_ids)} groups are lost ({', '.join(group_ids[:8])}): close these groups as lost "
            "and step again without them"
        )

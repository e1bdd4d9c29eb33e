"""What can go wrong in the learner, as the driver sees it."""


class LearnerError(RuntimeError):
    """The learner cannot go on; the message names the rank and what it was doing. Restart from a checkpoint."""


class PayloadLostError(LearnerError):
    """Some groups' tokens died with their rollout actor. Nothing was trained: step again without `group_ids`."""

    def __init__(self, group_ids: tuple[str, ...]) -> None:
        self.group_ids = group_ids
        super().__init__(
            f"the payloads of {len(group_ids)} groups are lost ({', '.join(group_ids[:8])}): close these groups as lost "
            "and step again without them"
        )

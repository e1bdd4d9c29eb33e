"""What happens to an update whose gradient is not finite: it is skipped, its batch is kept, and too many in a row end the run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.errors import DivergedError
from learner.optim.optimizers import Update
from learner.skipped import keep_batch

logger = logging.getLogger(__name__)


class Guard:
    """Counts skipped updates in a row, and keeps their batches."""

    def __init__(self, config: LearnerConfig, rank: int, inspect_dir: str | None) -> None:
        """inspect_dir: see `LearnerJob`."""
        self.config = config
        self.rank = rank
        self.inspect_dir = inspect_dir
        self.skipped_in_a_row = 0

    def judge(self, update: Update, plan: Sequence[PackedBatch], step: int, number: int) -> None:
        """Keep the batch of a skipped update. Raises DivergedError where there were `max_skipped` in a row."""
        if not update.skipped:
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        kept = None
        if self.inspect_dir is not None:
            name = f"step-{step:06d}-update-{number}-rank-{self.rank}"
            about = {
                "step": step,
                "update": number,
                "rank": self.rank,
                "gradient_norm": str(update.grad_norm),
                "lr": update.lr,
                "config": self.config.model_dump(mode="json"),
            }
            kept = keep_batch(Path(self.inspect_dir) / f"rank-{self.rank}", name, plan, about)
        message = f"the gradient's norm is {update.grad_norm} at step {step}, update {number}"
        logger.warning("%s: skipped%s", message, f"; its batch is in {kept}" if kept else "")
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise DivergedError(
                f"{message}, as it was in the {self.skipped_in_a_row - 1} updates before (learner.max_skipped): the policy has "
                "diverged; go back to a checkpoint with a lower learner.optimizer.lr"
            )

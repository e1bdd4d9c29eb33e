"""What watches over a step: where it is, what does not fit into memory, and updates whose loss or gradient is not finite.

Such an update is skipped, its batch is kept, and too many in a row end the run.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.errors import DivergedError
from learner.optim.optimizers import Update
from learner.out_of_memory import naming_what_fits_not
from learner.position import Position
from learner.skipped import keep_batch

logger = logging.getLogger(__name__)


class Guard:
    """Notes where the rank is, names what does not fit, counts skipped updates in a row, and keeps their batches."""

    def __init__(self, config: LearnerConfig, rank: int, inspect_dir: str | None, position: Position) -> None:
        """inspect_dir: see `LearnerJob`."""
        self.position = position
        self.config = config
        self.rank = rank
        self.inspect_dir = inspect_dir
        self.skipped_in_a_row = 0

    @contextmanager
    def watching(self, doing: str, batch: PackedBatch | None = None) -> Iterator[None]:
        """Raise OutOfMemoryError for what does not fit within. doing: phase and microbatch, for people.    batch: what is computed."""
        self.position.note(doing)
        with naming_what_fits_not(self.config, doing, batch):
            yield

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
                "loss_of_this_rank": str(update.loss),
                "gradient_norm": str(update.grad_norm),
                "lr": update.lr,
                "config": self.config.model_dump(mode="json"),
            }
            kept = keep_batch(Path(self.inspect_dir) / f"rank-{self.rank}", name, plan, about)
        message = (
            f"the loss or its gradient is not finite at step {step}, update {number} (loss of this rank {update.loss:g}, norm of the "
            f"gradient {update.grad_norm:g})"
        )
        logger.warning("%s: skipped%s", message, f"; its batch is in {kept}" if kept else "")
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise DivergedError(
                f"{message}, nor was it in the {self.skipped_in_a_row - 1} updates before (learner.max_skipped): the policy has "
                "diverged; go back to a checkpoint with a lower learner.optimizer.lr"
            )

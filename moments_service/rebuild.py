"""The moments of a run, made again from its ledger alone."""

from pathlib import Path

from moments_service.codebook import Codebook
from moments_service.config import MomentsConfig
from moments_service.ledger import LedgerReader
from moments_service.state import MomentsState

CODEBOOK_FILE = "codebook.safetensors"
LEDGER_FILE = "ledger.sqlite"


def rebuild(
    config: MomentsConfig, directory: Path, incarnation: int | None = None, before_step: int = 2**62
) -> MomentsState:
    """Fold every commit that the state of `incarnation` (the newest if None) is made of, up to `before_step`.

    directory: where the ledger and the codebook of the run live. The result equals what the service held, bit for bit.
    Raises FileNotFoundError if one of them is missing.
    """
    codebook = Codebook.load(directory / CODEBOOK_FILE)
    reader = LedgerReader(directory / LEDGER_FILE)
    try:
        state = MomentsState(config, len(codebook))
        newest = reader.last_incarnation() if incarnation is None else incarnation
        for part, first, last in reader.lineage(newest):
            for commit in reader.commits(part, first, min(last, before_step - 1)):
                state.fold(commit.step, commit.committed)
        return state
    finally:
        reader.close()

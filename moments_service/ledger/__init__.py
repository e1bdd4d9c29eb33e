"""The ledger of a run: written once, checked at every start, readable by anybody at any time."""

from moments_service.ledger.parts import DEFAULT_LIMITS, LedgerLimits
from moments_service.ledger.reader import FoldedGroup, LedgerReader
from moments_service.ledger.run_ledger import RunLedger, last_incarnation, ledger_directories, shard_directories
from moments_service.ledger.seals import LedgerDamagedError
from moments_service.ledger.writer import Ledger

__all__ = [
    "DEFAULT_LIMITS",
    "FoldedGroup",
    "Ledger",
    "LedgerDamagedError",
    "LedgerLimits",
    "LedgerReader",
    "RunLedger",
    "last_incarnation",
    "ledger_directories",
    "shard_directories",
]

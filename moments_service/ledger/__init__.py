"""The ledger of a run: written once, checked at every start, readable by anybody at any time."""

from moments_service.ledger.parts import DEFAULT_LIMITS, LedgerLimits
from moments_service.ledger.reader import FoldedGroup, LedgerReader, last_incarnation
from moments_service.ledger.seals import LedgerDamagedError, LedgerEnd
from moments_service.ledger.writer import Ledger, checked_for_writing

__all__ = [
    "DEFAULT_LIMITS",
    "FoldedGroup",
    "Ledger",
    "LedgerDamagedError",
    "LedgerEnd",
    "LedgerLimits",
    "LedgerReader",
    "checked_for_writing",
    "last_incarnation",
]

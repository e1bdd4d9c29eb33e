"""The same arithmetic without a run: from a ledger, a log or a file."""

"""How a run ends before its last step, for those who start runs. Imports nothing, so that commands stay quick."""


class StoppedByHandError(RuntimeError):
    """Somebody asked the run to end; what is needed to resume is on the disk."""

"""How a run ends before its last step, for those who start runs. Imports nothing, so that commands stay quick."""

_OURS = ("deploy.", "learner.", "actors.", "moments_service.")
_MOST = 600
"""Characters of a sentence."""


class StoppedByHandError(RuntimeError):
    """Somebody asked the run to end; what is needed to resume is on the disk."""


class CheckpointFailedError(RuntimeError):
    """A checkpoint could not be written; the message says why. The one before stands."""


class ServiceDiedError(RuntimeError):
    """A part of the run that cannot be replaced while it goes on ended; the message names it."""


def in_a_sentence(error: BaseException) -> str:
    """What went wrong, in one line for a person: of an error in another process the error there, of Ray's own its first line."""
    cause = getattr(error, "cause", None)  # a RayTaskError's, whose own text is a traceback
    if isinstance(cause, BaseException):
        error = cause
    kind, lines = type(error), str(error).strip().splitlines() or [""]
    text = " ".join((lines[0] if kind.__module__.startswith("ray.") else " ".join(lines)).split())
    text = text.partition(" Traceback (most recent call last):")[0]  # some have that of another process in their text
    text = text if len(text) <= _MOST else text[:_MOST] + " …"
    if not text:
        return kind.__name__
    return text if kind.__module__.startswith(_OURS) else f"{kind.__name__}: {text}"

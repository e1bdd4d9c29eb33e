"""What asks a command to end: Ctrl-C, SIGTERM, and SIGHUP when a terminal goes. All mean the same.

Whoever sends one to a process group often sends it to the process, too (`timeout`, a shell that hangs up): such an echo asks nothing more.
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

ECHO_S = 1.0
"""How long after a signal the next one is still the same request."""
REACHED_S = 0.3
"""How long one that was sent to all processes of a run at once may take to be handled here."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

asked = threading.Event()
"""Set once somebody has asked for the end."""
_last = [float("-inf")]


def is_echo() -> bool:
    """Whether the signal that is being handled belongs to the one before it; else it asks for the end, and is remembered."""
    now = time.monotonic()
    if now - _last[0] < ECHO_S:
        return True
    _last[0] = now
    asked.set()
    return False


def heard() -> tuple[signal.Signals, ...]:
    """Those that end this process: a SIGHUP that it was told to ignore, by nohup, does not."""
    return tuple(each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN)


def on_request(act: Callable[[], object]) -> None:
    """From now on call `act` in the main thread where somebody asks for the end."""
    for number in heard():
        signal.signal(number, lambda *_: None if is_echo() else act())


def interrupt() -> NoReturn:
    """What Ctrl-C does by default."""
    raise KeyboardInterrupt

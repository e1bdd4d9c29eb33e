"""Where `bvblend` begins and ends: who asks for the end while the commands are still imported, which takes a second or more, is answered, too."""

import atexit
import logging
import os
import sys
from contextlib import suppress

from deploy.run import signals

_UNCAUGHT = 1
"""Python's own exit code for an exception that nobody caught."""


def main() -> None:
    """Run `bvblend`."""
    signals.on_request(_end)
    code = _UNCAUGHT

    def leave() -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)

    # Registered first, so that it is called last. What Python would do now takes a second where torch was imported, and lets
    # libraries print what they leaked.
    atexit.register(leave)
    try:
        from deploy.cli.main import main as run

        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _end() -> None:
    """At once: an exception would pass through whatever a library does around its imports, and nothing has begun yet."""
    os.write(2, b"stopped by hand\n")
    os._exit(130)

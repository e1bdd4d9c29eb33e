"""Where `bvblend` begins: who asks for the end while the commands are still imported, which takes a second or more, is answered, too."""

import os

from deploy.run import signals


def main() -> None:
    """Run `bvblend`."""
    signals.on_request(_end)
    from deploy.cli.main import main as run

    run()


def _end() -> None:
    """At once: an exception would pass through whatever a library does around its imports, and nothing has begun yet."""
    os.write(2, b"stopped by hand\n")
    os._exit(130)

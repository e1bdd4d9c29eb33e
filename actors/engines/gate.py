"""Whether an engine serves: it makes requests wait while weights change, and refuses them once it cannot be trusted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.engines.protocol import EngineDeadError
from actors.weights.offer import WeightError


class Gate:
    """States: refusing (before `open`, after `refuse` or a failed update), open, and closed (during an update).

    Consumes: one `enter` a request. A request waits only while closed, and is let go when the update ends either way.
    """

    def __init__(self) -> None:
        self._passable = asyncio.Event()
        self._passable.set()
        self._updating = asyncio.Lock()
        self._refusal: RuntimeError | None = EngineDeadError("it was not started")

    @property
    def refusing(self) -> bool:
        """Whether `enter` raises."""
        return self._refusal is not None

    @property
    def closed(self) -> bool:
        """Whether an update is running."""
        return not self._passable.is_set()

    def open(self) -> None:
        """Let requests in."""
        self._refusal = None

    def refuse(self, error: RuntimeError) -> None:
        """Refuse from now on with errors of this type, also after a running update."""
        self._refusal = error

    async def enter(self) -> None:
        """Wait for a running update to end. Raises why the engine does not serve."""
        await self._passable.wait()
        self.raise_if_refusing()

    def raise_if_refusing(self) -> None:
        """Raises `EngineDeadError` or `WeightError`, whichever ended the engine."""
        if self._refusal is not None:
            raise type(self._refusal)(f"the engine does not serve: {self._refusal}")

    @asynccontextmanager
    async def update(self, version: int) -> AsyncIterator[None]:
        """Close for the body; open again if it succeeds, refuse for good if it raises or is cancelled."""
        async with self._updating:
            self.raise_if_refusing()
            self._passable.clear()
            finished = False
            try:
                yield
                finished = True
            except (WeightError, EngineDeadError) as error:
                self.refuse(error)
                raise
            finally:
                if not finished and self._refusal is None:
                    self.refuse(WeightError(f"its update to policy version {version} did not finish"))
                self._passable.set()

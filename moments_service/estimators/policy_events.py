"""A clock that goes by how far the policy moves, and knows what it showed at each of the last versions."""

import numpy as np

from moments_service.blend import Array
from moments_service.moments import Indices

VERSIONS, TIMES = "event_versions", "event_times"


class PolicyEvents:
    """Event time of the newest policy and of the ones before it: 0 at first, more after every step that moved it.

    window: how many moves are remembered; an older version has the time of the oldest one.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        # Policy version that each move led to, ascending, and the time from then on.
        self._versions = np.zeros(0)
        self._times = np.zeros(0)

    @property
    def now(self) -> float:
        """The event time of the newest policy."""
        return float(self._times[-1]) if len(self._times) else 0.0

    def at(self, versions: Indices | None, count: int) -> Array:
        """[count] event time at these policy versions; of the newest where they are not given."""
        if versions is None or not len(self._times):
            return np.full(count, self.now)
        place = np.searchsorted(self._versions, versions, side="right") - 1
        # A version before the first move that is known: the start of the run, or the oldest that is remembered.
        start = 0.0 if len(self._times) < self._window else float(self._times[0])
        return np.where(place >= 0, self._times[np.maximum(place, 0)], start)

    def advance(self, version: int, move: float) -> None:
        """The step that led to `version` took so much event time, >= 0."""
        if move > 0:
            self._versions = np.append(self._versions, float(version))[-self._window :]
            self._times = np.append(self._times, self.now + move)[-self._window :]

    def state(self) -> dict[str, np.ndarray]:
        return {VERSIONS: self._versions.copy(), TIMES: self._times.copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state`, which may hold more than this."""
        self._versions = np.array(state[VERSIONS], dtype=np.float64)
        self._times = np.array(state[TIMES], dtype=np.float64)

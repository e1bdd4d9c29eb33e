"""What breaks first with more rollout actors: queues in front of the moments service, with service times that were measured.

usage: python -m benchmarks.scale_simulation --out benchmarks/results/scale_simulation.json
           [--measured benchmarks/results/moments.json]

A discrete-event simulation. A actors finish a group each after an exponential time and send it; a message waits for the event
loop of the service, then for its writer, which takes all that wait into one transaction; the actor
goes on when that transaction is on the disk. The costs of blending and committing a batch are part of a group's costs.
"""

import argparse
import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ACTORS = (100, 1000, 3000, 10000, 30000)
GROUP_SECONDS = 8.0
"""Mean time in which one rollout actor finishes a group: 8 completions of 1,000 tokens at 1,000 tokens/s."""
BATCH = 2048
SECONDS = 60.0


@dataclass(frozen=True)
class Times:
    """Seconds. The first three are what one message costs and what each group in it adds."""

    call: float
    """CPU of the service for one call, whatever is in it."""
    group: float
    """CPU of the event loop for one group, blending and folding included."""
    write: float
    """CPU of the writer for one group: its header and its fold."""
    sync: float
    """One transaction's way to the disk."""


@dataclass(frozen=True)
class Outcome:
    rate: float
    """Groups a second that went through."""
    p50: float
    p99: float
    """Seconds from sending to acknowledge."""
    loop: float
    writer: float
    """Share of the time in which the event loop, and the writer, worked."""


class Simulation:
    """A actors. per_message: groups that share one message, from a forwarder of so many actors."""

    def __init__(self, actors: int, per_message: int, times: Times, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._per_message, self._times = per_message, times
        # (time, order, kind, sender, sent at); `order` keeps ties in the order in which they were made.
        self._events: list[tuple[float, int, str, int, float]] = []
        self._made = 0
        self._loop_free = self._loop_busy = 0.0
        self._waiting: list[tuple[int, float]] = []
        self._writing = False
        self._writer_busy = 0.0
        self._waits: list[float] = []
        self._done = 0
        for sender in range(max(actors // per_message, 1)):
            self._at(float(self._random.uniform(0.0, GROUP_SECONDS)), "send", sender)

    def run(self, seconds: float) -> Outcome:
        """The first quarter of the acknowledgements is left out of the waits: queues fill up in it."""
        now = 0.0
        while self._events and now <= seconds:
            now, _, kind, who, sent = heapq.heappop(self._events)
            if kind == "send":
                self._work_in_loop(now, self._times.call + self._per_message * self._times.group)
                self._at(self._loop_free, "taken in", who, now)
            elif kind == "taken in":
                self._waiting.append((who, sent))
                if not self._writing:
                    self._begin_write(now)
            elif kind == "written":
                self._writing = False
                if self._waiting:
                    self._begin_write(now)
            else:
                self._acknowledge(now, who, sent)
        settled = np.array(self._waits[len(self._waits) // 4 :])
        return Outcome(
            rate=self._done / now,
            p50=float(np.percentile(settled, 50)),
            p99=float(np.percentile(settled, 99)),
            loop=self._loop_busy / max(now, self._loop_free),
            writer=self._writer_busy / now,
        )

    def _at(self, time: float, kind: str, who: int, sent: float = 0.0) -> None:
        self._made += 1
        heapq.heappush(self._events, (time, self._made, kind, who, sent))

    def _spread(self, mean: float) -> float:
        """A service time: a third of its mean is its standard deviation."""
        return mean * float(self._random.gamma(9.0)) / 9.0

    def _work_in_loop(self, now: float, mean: float) -> None:
        cost = self._spread(mean)
        self._loop_free = max(self._loop_free, now) + cost
        self._loop_busy += cost

    def _begin_write(self, now: float) -> None:
        """One transaction of all that wait."""
        together, self._waiting = self._waiting, []
        self._writing = True
        cost = self._times.sync + self._spread(len(together) * self._per_message * self._times.write)
        self._writer_busy += cost
        for who, sent in together:
            self._at(now + cost, "acknowledged", who, sent)
        self._at(now + cost, "written", 0)

    def _acknowledge(self, now: float, who: int, sent: float) -> None:
        self._waits.append(now - sent)
        before, self._done = self._done, self._done + self._per_message
        if self._done // BATCH != before // BATCH:  # draw and commit
            self._work_in_loop(now, 2 * self._times.call)
        self._at(now + float(self._random.exponential(GROUP_SECONDS)), "send", who)


def measured_times(path: Path) -> Times:
    """Service times from the figures of moments.py, as its JSON holds them. What Ray adds to a call is the difference."""
    figures = {figure["name"]: figure["value"] for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]}
    loop, writer = figures["CPU of the event loop"], figures["CPU of the writer"]
    return Times(
        call=1e-6 * (figures["CPU of the service for one group in a call of its own, through Ray"] - loop - writer),
        group=1e-6 * loop,
        write=1e-6 * writer,
        sync=1e-3 * figures["one group alone, in process, to the disk"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--measured", type=Path, default=HERE / "results" / "moments.json")
    arguments = parser.parse_args()
    times = measured_times(arguments.measured)
    rows: list[dict[str, Any]] = []
    for per_message in (1, 32):
        for actors in ACTORS:
            found = Simulation(actors, per_message, times).run(seconds=SECONDS)
            rows.append(
                {
                    "actors": actors,
                    "groups_per_message": per_message,
                    "offered_groups_per_s": round(actors / GROUP_SECONDS, 1),
                    "groups_per_s": round(found.rate, 1),
                    "p50_ms": round(1e3 * found.p50, 2),
                    "p99_ms": round(1e3 * found.p99, 2),
                    "event_loop_busy": round(found.loop, 3),
                    "writer_busy": round(found.writer, 3),
                }
            )
    result = {
        "assumptions": {"group_seconds_of_an_actor": GROUP_SECONDS, "batch": BATCH, "simulated_seconds": SECONDS},
        "service_times_us": {
            "call": round(1e6 * times.call, 2),
            "group": round(1e6 * times.group, 2),
            "write": round(1e6 * times.write, 2),
            "sync": round(1e6 * times.sync, 2),
        },
        "runs": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()

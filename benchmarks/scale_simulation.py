"""What breaks first with more rollout actors: queues in front of the moments service, with service times that were measured.

usage: python benchmarks/scale_simulation.py --out benchmarks/results/scale_simulation.json
           [--measured benchmarks/results/moments.json]

A discrete-event simulation. A actors finish a group each after an exponential time and send it; a message waits for the event
loop of the service (or router), then for the writer of its shard, which takes all that wait into one transaction; the actor
goes on when that transaction is on the disk. Every B groups a batch is blended and committed, for which the event loop and all
writers are busy too. Service times are means of exponential times, so that queues are judged with some spread.
"""

import argparse
import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ACTORS = (10, 100, 1000, 3000, 10000)
GROUP_SECONDS = 8.0
"""Mean time in which one rollout actor finishes a group: 8 completions of 1,000 tokens at 1,000 tokens/s."""
BATCH = 2048


@dataclass(frozen=True)
class Times:
    """Seconds. The first three are what one message costs and what each group in it adds."""

    call: float
    """CPU of the service for one call, whatever is in it."""
    group: float
    """CPU of the event loop for one group, blending and folding included."""
    write: float
    """CPU of a writer for one group: its header and its fold."""
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
    writers: float
    """Share of the time in which the event loop, and the busiest writer, worked."""


def simulate(actors: int, per_message: int, shards: int, times: Times, seconds: float, seed: int = 0) -> Outcome:
    """Run `actors` for `seconds`. per_message: groups that share one message, sent by a forwarder of so many actors."""
    generator = np.random.default_rng(seed)
    senders = max(actors // per_message, 1)
    think = GROUP_SECONDS
    # (time, order, kind, sender, sent at); `order` keeps ties in the order in which they were made.
    events: list[tuple[float, int, str, int, float]] = []
    made = 0

    def at(time: float, kind: str, who: int, sent: float) -> None:
        nonlocal made
        made += 1
        heapq.heappush(events, (time, made, kind, who, sent))

    for sender in range(senders):
        at(float(generator.uniform(0.0, think)), "send", sender, 0.0)
    loop_free, loop_busy = 0.0, 0.0
    waiting: list[list[tuple[int, float]]] = [[] for _ in range(shards)]
    writing = [False] * shards
    writer_busy = np.zeros(shards)
    waits: list[float] = []
    done = 0

    def begin_write(shard: int, now: float) -> None:
        batch, waiting[shard] = waiting[shard], []
        writing[shard] = True
        cost = times.sync + len(batch) * per_message * times.write * float(generator.gamma(8.0) / 8.0)
        writer_busy[shard] += cost
        for who, sent in batch:
            at(now + cost, "acknowledged", who, sent)
        at(now + cost, "written", shard, 0.0)

    now = 0.0
    while events:
        now, _, kind, who, sent = heapq.heappop(events)
        if now > seconds:
            break
        if kind == "send":
            cost = (times.call + per_message * times.group) * float(generator.gamma(8.0) / 8.0)
            loop_free = max(loop_free, now) + cost
            loop_busy += cost
            at(loop_free, "taken in", who, now)
        elif kind == "taken in":
            shard = int(generator.integers(shards))
            waiting[shard].append((who, sent))
            if not writing[shard]:
                begin_write(shard, now)
        elif kind == "written":
            writing[who] = False
            if waiting[who]:
                begin_write(who, now)
        else:
            waits.append(now - sent)
            done += per_message
            if done // BATCH != (done - per_message) // BATCH:
                loop_free = max(loop_free, now) + 2 * times.call
                loop_busy += 2 * times.call
            at(now + float(generator.exponential(think)), "send", who, 0.0)
    settled = np.array(waits[len(waits) // 4 :]) if waits else np.zeros(1)
    return Outcome(
        rate=done / now,
        p50=float(np.percentile(settled, 50)),
        p99=float(np.percentile(settled, 99)),
        loop=loop_busy / now,
        writers=float(writer_busy.max()) / now,
    )


def measured_times(path: Path) -> Times:
    """Service times from the figures of moments.py, as its JSON holds them. What Ray adds to a call is the difference."""
    figures = {figure["name"]: figure["value"] for figure in json.loads(path.read_text())["figures"]}
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
    for per_message, shards in ((1, 1), (32, 1), (32, 4)):
        for actors in ACTORS:
            found = simulate(actors, per_message, shards, times, seconds=60.0)
            rows.append(
                {
                    "actors": actors,
                    "groups_per_message": per_message,
                    "shards": shards,
                    "offered_groups_per_s": round(actors / GROUP_SECONDS, 1),
                    "groups_per_s": round(found.rate, 1),
                    "p50_ms": round(1e3 * found.p50, 2),
                    "p99_ms": round(1e3 * found.p99, 2),
                    "event_loop_busy": round(found.loop, 3),
                    "busiest_writer_busy": round(found.writers, 3),
                }
            )
    result = {
        "assumptions": {"group_seconds_of_an_actor": GROUP_SECONDS, "batch": BATCH, "simulated_seconds": 60.0},
        "service_times_us": {
            "call": round(1e6 * times.call, 2),
            "group": round(1e6 * times.group, 2),
            "write": round(1e6 * times.write, 2),
            "sync": round(1e6 * times.sync, 2),
        },
        "runs": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()

"""Kills a moments service that is under load, again and again, and checks what is left each time.

Run as `python -m tests.chaos.moments_under_fire DIRECTORY ROUNDS`; prints one JSON line at the end. A process of its own,
because it forks: the child is the service with its load, and dies by SIGKILL at a random instant.
"""

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from moments_service.clusters import PromptSet
from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.ledger import LedgerLimits, LedgerReader
from moments_service.ledger.parts import part_paths
from moments_service.ledger.seals import check_parts
from moments_service.messages.groups import ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from moments_service.offline.rebuild import rebuild
from moments_service.service import MomentsService
from moments_service.state import MomentsState

CLUSTERS = 32
KILLS_PER_LEDGER = 25
"""Every start reads the whole ledger, so that kills on one ledger become slower and slower."""
LIMITS = LedgerLimits(part_bytes=48 * 2**10, texts_bytes=96 * 2**10)
"""Small, so that many kills fall into the middle of closing a part, beginning the next or dropping texts."""
TEXT = Transcript("1 + 1 = " * 20, ("2" * 200,))
PROMPTS = PromptSet(
    tuple(f"prompt{number}" for number in range(CLUSTERS)), ("load",) * CLUSTERS, ("",) * CLUSTERS,
    np.eye(CLUSTERS, dtype=np.float32),
)  # fmt: skip


def digest(state: MomentsState) -> str:
    arrays = state.arrays()
    return hashlib.sha256(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


def some_groups(generator: random.Random, sequence: int, count: int) -> list[ScoredGroup]:
    groups = []
    for number in range(sequence, sequence + count):
        rewards = [generator.choice((0.0, 1.0, 0.5, None)) for _ in range(generator.randint(1, 8))]
        rewards[0] = float(generator.random() < 0.5)
        groups.append(
            ScoredGroup(
                group_id=f"group{number}:0:0:0",
                prompt_id=PROMPTS.prompt_ids[generator.randrange(CLUSTERS)],
                source="load",
                sequence=number,
                rewards=tuple(rewards),
                errors=tuple(None if reward is not None else "verifier: timed out" for reward in rewards),
                lengths=(5,) * len(rewards),
                truncated=(False,) * len(rewards),
                policy_versions=(0, 0),
            )
        )
    return groups


async def started(config: MomentsConfig, directory: Path) -> MomentsService:
    service = MomentsService(config, directory, seed=0, limits=LIMITS)
    await service.fit_clusters(PROMPTS)
    return service


async def load(config: MomentsConfig, directory: Path, seed: int, sequence: int, acknowledge: int) -> None:
    """Submit, blend and commit until killed. Every acknowledgement goes down the pipe `acknowledge`, after it came."""
    generator = random.Random(seed)
    service = await started(config, directory)
    step = (await service.stats())["last_step"]
    ready: list[str] = []
    os.write(acknowledge, b"ready\n")

    async def submit(groups: list[ScoredGroup]) -> None:
        await service.submit_table(GroupTable.of(groups), ["payload"] * len(groups), [TEXT] * len(groups))
        os.write(acknowledge, "".join(f"group {group.group_id}\n" for group in groups).encode())

    while True:
        sending, new = [], []
        for _ in range(generator.randint(1, 4)):
            groups = some_groups(generator, sequence, generator.randint(1, 6))
            sequence += len(groups)
            new += groups
            sending.append(asyncio.create_task(submit(groups)))
            if generator.random() < 0.3:  # a sender that tries again
                sending.append(asyncio.create_task(submit(groups)))
        await asyncio.gather(*sending)
        step += 1
        ready += [group.group_id for group in new]
        drawn = max(1, len(ready) - generator.randint(0, 3))
        # Two callers, as where one gave up and tries again.
        await asyncio.gather(service.draw(step, ready[:drawn]), service.draw(step, ready[:drawn]))
        ready = ready[drawn:]
        await service.commit(step, policy_version=step + 1)
        assert service._history.state is not None
        os.write(acknowledge, f"commit {step} {digest(service._history.state)}\n".encode())


def one_round(config: MomentsConfig, directory: Path, seed: int, sequence: int) -> list[str]:
    """Start the service under load, kill it, and return the lines that it acknowledged."""
    receive, acknowledge = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        asyncio.run(load(config, directory, seed, sequence, acknowledge))
    os.close(acknowledge)
    with os.fdopen(receive) as pipe:
        # Every fifth dies while it starts and replays, the others in the middle of their work, however fast the machine is just now.
        chance = random.Random(seed)
        heard = [pipe.readline() for _ in range(chance.randint(1, 60))] if seed % 5 else []
        time.sleep(chance.uniform(0.0, 0.03 if heard else 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "".join([*heard, pipe.read()]).splitlines()


def check(config: MomentsConfig, directory: Path, acknowledged: list[str], groups: set[str]) -> None:
    """What was acknowledged is there, once; the state is what its commits said it was."""
    groups |= {line.split()[1] for line in acknowledged if line.startswith("group ")}
    reader = LedgerReader(directory)
    rows = [group_id for (group_id,) in reader.query("SELECT group_id FROM groups")]
    folded = [group_id for (group_id,) in reader.query("SELECT group_id FROM folds")]
    reader.close()
    assert len(rows) == len(set(rows)), "a group stands in the ledger twice"
    assert groups <= set(rows), f"acknowledged and lost: {sorted(groups - set(rows))[:3]}"
    assert len(folded) == len(set(folded)), "a group was counted twice"
    commits = [line.split()[1:] for line in acknowledged if line.startswith("commit ")]
    if commits:
        step, expected = commits[-1]
        assert digest(rebuild(config, directory, before_step=int(step) + 1).state) == expected, (
            f"another state after step {step}"
        )


async def finish(config: MomentsConfig, directory: Path, groups: set[str]) -> None:
    """One last commit: every group that was ever acknowledged is part of history then, exactly once."""
    service = await started(config, directory)
    step = (await service.stats())["last_step"] + 1
    (last,) = some_groups(random.Random(0), 10**9, 1)
    await service.submit(last, "payload")
    await service.draw(step, [last.group_id])
    await service.commit(step, policy_version=step + 1)
    assert service._history.state is not None
    assert digest(service._history.state) == digest(rebuild(config, directory).state)
    await service.close()
    reader = LedgerReader(directory)
    folded = [group_id for (group_id,) in reader.query("SELECT group_id FROM folds")]
    reader.close()
    assert groups <= set(folded) and len(folded) == len(set(folded))
    check_parts(part_paths(directory))


async def prepare(config: MomentsConfig, directory: Path) -> None:
    await (await started(config, directory)).close()


def main(directory: Path, rounds: int) -> None:
    config = MomentsConfig(clusters=ClusterConfig(count=CLUSTERS))
    acknowledged_groups = commits = parts = 0
    for life in range(0, rounds, KILLS_PER_LEDGER):
        groups: set[str] = set()
        home = directory / f"life{life}"
        asyncio.run(prepare(config, home))
        for number in range(life, min(life + KILLS_PER_LEDGER, rounds)):
            acknowledged = one_round(config, home, seed=number, sequence=number * 10_000)
            commits += sum(line.startswith("commit ") for line in acknowledged)
            check(config, home, acknowledged, groups)
        asyncio.run(finish(config, home, groups))
        acknowledged_groups += len(groups)
        parts += len(part_paths(home))
    found = {
        "kills": rounds,
        "groups_acknowledged": acknowledged_groups,
        "commits_acknowledged": commits,
        "parts": parts,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

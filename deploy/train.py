"""The training loop. This page is the table of contents of the whole service."""

import asyncio

from deploy.run.run import Run, policy_move
from learner.errors import PayloadLostError


async def train(run: Run) -> None:
    """Consumes: prompts of the feed. Ends: after `steps`, when stopped, or by the first error, which names its phase."""
    while run.step < run.config.steps and not run.stopping:
        # 1. Rollout actors sample groups with the newest policy, score them and submit them.
        with run.phase("generate"):
            await run.gather()

        # 2. Their rewards become advantages, from moments that have not seen this batch.
        with run.phase("moments"):
            batch = await run.moments.next_batch.remote(run.step, run.config.batch_groups)
        await run.react(batch.alarms)

        # 3. One policy step.
        try:
            with run.phase("learn"):
                metrics = await run.learner.step(batch)
        except PayloadLostError as lost:
            await run.lose(batch, lost.group_ids)
            continue

        # 4. The new weights go to every rollout actor, whole or not at all; meanwhile, and only now, the batch becomes history.
        with run.phase("publish"):
            version = run.policy_version + 1
            history = run.moments.commit.remote(run.step, version, policy_move(metrics))
            await asyncio.gather(run.publish(version), history)
            await run.advance(batch)

        # 5. Report, evaluation and checkpoint, each when due.
        await run.finish_step(batch, metrics)

"""The training loop. This page is the table of contents of the whole service."""

from deploy.run.run import Run, policy_move
from learner.errors import PayloadLostError


async def train(run: Run) -> None:
    """Consumes: prompts of the feed. Ends: after `steps`, when stopped, or by the first error, which names its phase."""
    while run.step < run.config.steps and not run.stopping:
        # 1. Rollout actors sample groups with the newest policy, score them and submit them: the oldest are the batch.
        with run.phase("generate"):
            group_ids = await run.take()

        # 2. Their rewards become advantages, from moments that have not seen this batch; shaping is for the learner alone.
        with run.phase("moments"):
            batch = run.shaped(await run.moments.draw(run.step, group_ids))
        await run.react(batch)

        # 3. One policy step, once the weights that it changes were handed over.
        try:
            with run.phase("learn"):
                await run.sync.pushed()
                learned = await run.learner.step(batch, run.tokens.chosen(batch))
        except PayloadLostError as lost:
            await run.sample_again(lost.group_ids)
            continue

        # 4. The new weights go to every rollout actor, whole or not at all; meanwhile, and only now, the batch becomes history.
        with run.phase("publish"):
            run.sync.start(run.step + 1)
            run.remembered = await run.moments.commit(run.step, run.step + 1, policy_move(learned))
            await run.sync.settle()
            await run.advance(batch)

        # 5. Report, evaluation and checkpoint, each when due.
        await run.after_step(batch, learned)

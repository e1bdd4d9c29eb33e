"""One policy step of one rank: `PolicyStep.__call__` is the table of contents, a phase a line."""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from learner.batching.pack import ScoredSamples, Totals, check_group, count, empty_batch, pack
from learner.batching.packed import PackedBatch
from learner.batching.probe import random_share
from learner.config import LearnerConfig
from learner.guard import Guard
from learner.kept_tokens import values_of
from learner.losses.metrics import Tally, move_sums
from learner.losses.objective import Objective
from learner.losses.old_logprobs import Recompute
from learner.masks.statistics import with_statistics
from learner.model.head_move import HeadMove
from learner.model.policy import Policy
from learner.model.second_weights import OtherWeights, SecondWeights
from learner.optim.optimizers import Optimizers, Update
from learner.token_values import TokenValues
from moments_service.seeding import derive_seed

Updates = Sequence[Sequence[ScoredSamples]]
"""For each optimiser step of a policy step, this rank's groups."""

FILL_TOKENS = {"cpu": 2560}
"""Tokens at which a microbatch is full however much memory there is: beyond, activations leave a core's cache."""
PHASES = ("plan", "reference", "old", "update", "measure")


@dataclass(frozen=True, slots=True)
class Policies:
    """The policy that is trained, and those that are only asked for log-probs."""

    trained: Policy
    reference: OtherWeights | None
    refreshed: SecondWeights | None = None
    """The reference, where it becomes the policy every `learner.kl.refresh_every` steps."""
    average: SecondWeights | None = None
    """A moving average of the policy, where ratios start at one."""


class PolicyStep:
    """From groups to a changed policy. Collective: every rank calls it with the same step and as many updates."""

    def __init__(
        self,
        config: LearnerConfig,
        policies: Policies,
        optimizers: Optimizers,
        objective: Objective,
        guard: Guard,
        head: torch.nn.Parameter | None = None,
    ) -> None:
        """head: the output head's weight, where a mask asks how far its next step moves the tokens."""
        self.config = config
        self.policies = policies
        self.optimizers = optimizers
        self.objective = objective
        self.guard = guard
        self.head = head
        self.device = torch.device(config.device)
        self.rank = dist.get_rank()
        self._seconds: dict[str, float] = {}
        self._step, self._doing = -1, ""
        self.kept: list[TokenValues] = []
        """Of this rank's part of the groups that the last step was asked for."""

    def __call__(self, updates: Updates, step: int, measure_move: bool, keep: Collection[str] = ()) -> dict[str, float]:
        """See `LearnerRank.step`.

        measure_move: whether to measure how far the step moves the policy.    keep: groups whose `TokenValues` are kept. The seconds of a phase are those of the slowest
        rank; on a GPU a phase ends when its work is queued, except the updates.
        """
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._step = step
        started = time.perf_counter()
        with self._phase("plan"):
            plans = self._plan(updates, step)
        with self._phase("reference"):
            self._refresh_reference(step)
            plans = self._with_reference(plans)
        with self._phase("measure"):
            probe = self._probe(updates, plans, step) if measure_move else []
            before = self._logprobs(self.policies.trained, probe)
            self.kept = self._token_values(updates, step, keep) if keep else []
        with self._phase("old"):
            plans = [with_statistics(plan, self.config.masks) for plan in self._with_old(plans)]
        with self._phase("update"):
            learned = self._train(plans, step)
        with self._phase("measure"):
            move = self._move(probe, before)
        measured = self._over_all_ranks(learned, move, time.perf_counter() - started)
        return learned.metrics() | measured | {"microbatches": float(sum(map(len, plans)))}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        self._doing = f"{name} of step {self._step}"
        with self.guard.watching(self._doing):
            yield
        self._seconds[name] += time.perf_counter() - started

    def _plan(self, updates: Updates, step: int) -> list[list[PackedBatch]]:
        """Microbatches of each update, as many on every rank; none at all where no rank has anything to train on."""
        config = self.config
        for samples, advantages in (group for groups in updates for group in groups):
            check_group(samples, advantages)
        here = [count(groups) for groups in updates]
        totals = torch.tensor([[each.groups, each.samples, each.tokens] for each in here], dtype=torch.int64)
        dist.all_reduce(totals)
        plans = [
            pack(
                groups,
                config.aggregation,
                Totals(*total),
                step,
                self.policies.trained.share_prompt,
                config.microbatch_tokens,
                self.policies.trained.padded,
                FILL_TOKENS.get(self.device.type),
            )
            for groups, total in zip(updates, totals.tolist(), strict=True)
        ]
        passes = torch.tensor([len(plan) for plan in plans])
        dist.all_reduce(passes, op=dist.ReduceOp.MAX)
        for plan, most in zip(plans, passes.tolist(), strict=True):
            # Forward and backward are collective under FSDP, so a rank with fewer rows runs empty ones.
            plan.extend(empty_batch() for _ in range(most - len(plan)))
        return plans

    @torch.no_grad()
    def _logprobs(self, policy: Policy, plan: Sequence[PackedBatch]) -> list[torch.Tensor]:
        found = []
        for number in range(len(plan)):
            with self._microbatch(plan, number) as batch:
                found.append(policy(batch)[0])
        return found

    @contextmanager
    def _microbatch(self, plan: Sequence[PackedBatch], number: int) -> Iterator[PackedBatch]:
        """A microbatch on the device, under the eyes of the guard."""
        with self.guard.watching(f"{self._doing}, microbatch {number + 1} of {len(plan)}", plan[number]):
            yield plan[number].to(self.device)

    def _refresh_reference(self, step: int) -> None:
        """Where it is due, make the reference the policy as it is before this step. By the step alone, so that a resume does alike."""
        every = self.config.kl.refresh_every
        if self.policies.refreshed is not None and every is not None and step > 0 and step % every == 0:
            self.policies.refreshed.refresh()

    def _with_reference(self, plans: list[list[PackedBatch]]) -> list[list[PackedBatch]]:
        """The microbatches with log-probs of the reference policy, where there is one."""
        if self.policies.reference is None:
            return plans
        with self.policies.reference.in_place() as policy:
            asked = [self._asked(policy, plan) for plan in plans]
        return [[replace(batch, reference_logprobs=found) for batch, found in plan] for plan in asked]

    def _with_old(self, plans: list[list[PackedBatch]]) -> list[list[PackedBatch]]:
        """The microbatches with the log-probs that ratios start at, where a pass of its own finds them.

        Of the policy before the first update none is made where there is one update: they are those of now.
        """
        if "old" not in self.objective.needs:
            return plans
        if self.policies.average is not None:
            with self.policies.average.in_place() as policy:
                asked = [self._asked(policy, plan) for plan in plans]
        elif isinstance(self.config.old_logprobs, Recompute) and len(plans) > 1:
            asked = [self._asked(self.policies.trained, plan) for plan in plans]
        else:
            return plans
        return [[replace(batch, old_logprobs=found) for batch, found in plan] for plan in asked]

    def _asked(self, policy: Policy, plan: Sequence[PackedBatch]) -> list[tuple[PackedBatch, torch.Tensor]]:
        """Each microbatch with the policy's log-probs."""
        return list(zip(plan, self._logprobs(policy, plan), strict=True))

    def _train(self, plans: Sequence[Sequence[PackedBatch]], step: int) -> "Learned":
        """An optimiser step for each plan that holds anything."""
        learned = Learned(Tally(self.objective.names, self.device), self.optimizers.lr)
        for number, plan in enumerate(plans):
            if not plan:
                continue
            self._doing = f"update {number + 1} of {len(plans)} of step {step}"
            update = self._update(plan, learned)
            learned.add(update)
            self.guard.judge(update, plan, step, number)
        return learned

    def _update(self, plan: Sequence[PackedBatch], learned: "Learned") -> Update:
        """Gradients of one update, and the step that they make; counted unless it was skipped."""
        losses, parts = [], []
        policy = self.policies.trained
        policy.head_move = head_move = self._head_move()
        for number in range(len(plan)):
            with self._microbatch(plan, number) as batch:
                logprobs, entropy = policy(batch)
                moved = None if head_move is None else head_move.found
                loss, measured = self.objective(batch, logprobs, entropy, moved)
                loss.backward()
                losses.append(loss.detach())
                parts.append(measured)
        policy.head_move = None
        if (penalty := None if policy.adapter is None else policy.adapter.add_penalty()) is not None:
            # On every rank the same: counted once where the ranks' losses are added up.
            losses.append((penalty / dist.get_world_size()).to(losses[0]))
        with self.guard.watching(f"{self._doing}, the optimiser's step"):
            update = self.optimizers.step(torch.stack(losses).sum())
        if not update.skipped:
            learned.tally.add(losses, parts, plan)
            learned.penalty = penalty
            if self.policies.average is not None and self.config.average is not None:
                self.policies.average.move_towards(1.0 - self.config.average.decay)
        return update

    def _head_move(self) -> HeadMove | None:
        """What looks at the head's hidden states during an update, where a mask asks and the head has been stepped before."""
        step = None if self.head is None else self.optimizers.planned_step(self.head)
        return None if step is None else HeadMove(step, self.config.memory.logit_elements)

    def _probe(self, updates: Updates, plans: Sequence[Sequence[PackedBatch]], step: int) -> list[PackedBatch]:
        """A random share of this rank's part of the first update, one microbatch; none where no rank has anything to train on."""
        config = self.config
        groups, plan = next(((groups, plan) for groups, plan in zip(updates, plans, strict=True) if plan), ((), ()))
        if not plan:
            return []
        seed = derive_seed(step, "move", self.rank)
        policy = self.policies.trained
        share = random_share(
            groups,
            len(plan),
            config.aggregation,
            step,
            policy.share_prompt,
            config.microbatch_tokens,
            seed,
            policy.padded,
        )
        return [share or empty_batch()]

    def _token_values(self, updates: Updates, step: int, keep: Collection[str]) -> list[TokenValues]:
        """By the policy before the step, of the groups of this rank that are named."""
        groups = [group for update in updates for group in update if group[0][0].group_id in keep]
        (plan,) = self._plan([groups], step)
        logprobs = self._logprobs(self.policies.trained, plan)
        on_device = (batch.to(self.device) for batch in plan)
        advantages = [self.objective.token_advantages(*pair) for pair in zip(on_device, logprobs, strict=True)]
        return values_of(groups, plan, logprobs, advantages)

    def _move(self, probe: Sequence[PackedBatch], before: Sequence[torch.Tensor]) -> torch.Tensor:
        """[3], see `move_sums`: how far the step moved the policy on the tokens of `probe`; [0] where none was taken."""
        after = self._logprobs(self.policies.trained, probe)
        sums = [
            move_sums(old, new, batch.mask.to(self.device, non_blocking=True))
            for batch, old, new in zip(probe, before, after, strict=True)
        ]
        return torch.stack(sums).sum(dim=0) if sums else torch.zeros(0, dtype=torch.float64, device=self.device)

    def _over_all_ranks(self, learned: "Learned", move: torch.Tensor, step_s: float) -> dict[str, float]:
        """Reduce what was learned over all ranks, in place: one copy to the host, one sum and one maximum.

        Returns how far the step moved the policy, and the seconds of each phase and of the step, of the slowest rank.
        """
        tally, penalty = learned.tally, learned.penalty
        here = [tally.loss[None], tally.sums.flatten(), move, tally.maxima.flatten()]
        here += [] if penalty is None else [penalty[None]]
        loss, sums, move, maxima, *alike = torch.cat(here).cpu().split([len(each) for each in here])
        summed = torch.cat([loss, sums, move])
        dist.all_reduce(summed)
        seconds = self._seconds | {"step": step_s}
        largest = torch.cat([maxima, torch.tensor(list(seconds.values()), dtype=torch.float64)])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        tally.loss, tally.sums = summed[0], summed[1 : 1 + len(sums)].view_as(tally.sums)
        tally.maxima = largest[: len(maxima)].view_as(tally.maxima)
        learned.penalty = alike[0][0] if alike else None
        named = {f"{name}_s": value for name, value in zip(seconds, largest[len(maxima) :].tolist(), strict=True)}
        if len(move):
            kl, log_ratio, tokens = summed[-3:].tolist()
            named |= {"move_kl": kl / max(tokens, 1.0), "move_log_ratio": log_ratio / max(tokens, 1.0)}
        return named


@dataclass(slots=True)
class Learned:
    """What the updates of a step came to."""

    tally: Tally
    lr: float
    penalty: torch.Tensor | None = None
    """What the adapter's regulariser added to the loss of the last update; None where there was none."""
    grad_norm: float = 0.0
    updates: int = 0
    skipped: int = 0

    def add(self, update: Update) -> None:
        """Count an update."""
        self.lr = update.lr
        if update.skipped:
            self.skipped += 1
        else:
            self.grad_norm, self.updates = update.grad_norm, self.updates + 1

    def metrics(self) -> dict[str, float]:
        """Floats by name, once the tally is that of all ranks."""
        means = {"loss": float(self.tally.loss) / max(1, self.updates)} | self.tally.means()
        if self.penalty is not None:
            means["adapter_penalty"] = float(self.penalty)
        return means | {
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "updates": float(self.updates),
            "skipped": float(self.skipped),
        }

"""Run directories without training: the real moments service takes groups whose rewards a coin decides.

Everything a reader finds in them is what a run writes: configuration, ledger, clusters, metrics, live.json, alarms, evaluations.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config.recipe import dump_config, load_recipe
from deploy.rundir import token_file
from deploy.rundir.layout import RunDirectory
from deploy.rundir.live_file import LiveFile
from learner.losses.metrics import MISMATCH_BINS
from learner.token_values import TokenValues
from moments_service.clusters import PromptSet
from moments_service.ledger import DEFAULT_LIMITS, LedgerLimits
from moments_service.messages.batch import Batch
from moments_service.messages.groups import GroupStatus, ScoredGroup, Transcript
from moments_service.service import MomentsService
from tests.conftest import ROOT

RECIPE = ROOT / "deploy" / "recipes" / "cold_start.yaml"
SOURCES = ("addition", "gcd", "leap_years", "letter_counting", "multiplication", "spell_backward")
PROMPTS_A_SOURCE = 20
DIMENSION = 24


class MadeRun:
    """One run, step by step. texts: completions to use instead of made-up ones, by their number in the whole run."""

    def __init__(
        self,
        runs_dir: Path,
        name: str = "made",
        seed: int = 0,
        steps: int = 30,
        groups: int = 8,
        size: int = 2,
        estimator: str = "bv_blend",
        texts: dict[int, str] | None = None,
        limits: LedgerLimits = DEFAULT_LIMITS,
        sources: tuple[str, ...] = SOURCES,
    ) -> None:
        self.config = load_recipe(
            RECIPE,
            [f"steps={steps}", f"batch_groups={groups}", f"group_size={size}", f"seed={seed}", f"moments.estimator={estimator}",
             "moments.clusters.count=12", "rollout.engine=transformers"],
        )  # fmt: skip
        self.directory = RunDirectory(runs_dir / name)
        self.directory.path.mkdir(parents=True)
        self.directory.checkpoints.mkdir()
        self.directory.config.write_text(dump_config(self.config))
        self.step = 0
        self.texts = texts or {}
        self._limits = limits
        self._sources = sources
        self._random = np.random.default_rng(seed)
        self._live = LiveFile(self.directory.live)
        self._sequence = self._completions = self._drawn = 0
        self.ahead = 0
        """Groups that are submitted and wait while a step is trained."""
        self._service: MomentsService | None = None
        self.prompts = self._prompt_set()
        self.group_ids: list[str] = []

    async def start(self, incarnation: int = 0, snapshot: Path | None = None, step: int = 0) -> "MadeRun":
        """Begin, or go on from what `snapshot` wrote after `step` steps, as a later incarnation."""
        self._incarnation, self.step = incarnation, step
        config = self.config
        self._service = MomentsService(
            config.moments, self.directory.moments, config.seed, incarnation, snapshot, self._limits,
            config.model_dump(mode="json"),
        )  # fmt: skip
        await self._service.fit_clusters(self.prompts)
        return self

    async def snapshot(self, directory: Path) -> Path:
        """Save the moments as a checkpoint does, into a new directory. Returns it."""
        assert self._service is not None
        await asyncio.to_thread(directory.mkdir)
        await self._service.snapshot(directory)
        return directory

    async def steps(self, count: int) -> "MadeRun":
        """Train so many steps."""
        for _ in range(count):
            await self._one_step()
        return self

    async def finish(self) -> "MadeRun":
        """Close the ledger; the run is done."""
        assert self._service is not None
        await self._service.close()
        self.directory.summary.write_text("{}")
        return self

    async def close(self) -> None:
        assert self._service is not None
        await self._service.close()

    def _prompt_set(self) -> PromptSet:
        count = len(self._sources) * PROMPTS_A_SOURCE
        of_source = np.repeat(np.arange(len(self._sources)), PROMPTS_A_SOURCE)
        centres = self._random.normal(size=(len(self._sources), DIMENSION))
        points = centres[of_source] + 0.6 * self._random.normal(size=(count, DIMENSION))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        self._skill = self._random.uniform(-3.0, 1.0, size=len(self._sources))[of_source] + 0.7 * self._random.normal(
            size=count
        )
        ids = tuple(f"{int(self._random.integers(2**60)):016x}" for _ in range(count))
        return PromptSet(ids, tuple(self._sources[i] for i in of_source), ("",) * count, points.astype(np.float32))

    async def _one_step(self) -> None:
        service = self._service
        assert service is not None
        while len(self.group_ids) < (self._drawn + 1) * self.config.batch_groups + self.ahead:
            group, transcript = self._group(int(self._random.integers(len(self.prompts))))
            await service.submit(group, payload=object(), transcript=transcript)
            self.group_ids.append(group.group_id)
        first = self._drawn * self.config.batch_groups
        self._drawn += 1
        batch = await service.draw(self.step, self.group_ids[first : first + self.config.batch_groups])
        await service.commit(self.step, self.step + 1)
        for alarm in batch.alarms:
            self.directory.append_alarm(self.step, alarm)
        self.directory.append_metrics(self._metrics(batch))
        self.step += 1
        services = {"slots": self.config.slots, "in_flight": self.config.batch_groups, "scored": 0, "restarts": 0,
                    "actors": [{"serving": True, "load": self.config.batch_groups}]}  # fmt: skip
        about = {"step": self.step, "incarnation": self._incarnation, "policy_version": self.step}
        moments = await service.stats() | {"clusters": await service.cluster_stats()}
        self._live.write(about | services | {"moments": moments})

    def _group(self, row: int) -> tuple[ScoredGroup, Transcript]:
        size = self.config.group_size
        chance = 1.0 / (1.0 + np.exp(-(self._skill[row] + 0.05 * self.step)))
        rewards = tuple(float(value) for value in self._random.random(size) < chance)
        completions = []
        for reward in rewards:
            completions.append(self.texts.get(self._completions, f" {int(reward * 42)}"))
            self._completions += 1
        group = ScoredGroup(
            group_id=f"{self.prompts.prompt_ids[row]}:{self._incarnation}:{self._sequence}:0",
            prompt_id=self.prompts.prompt_ids[row],
            source=self.prompts.sources[row],
            sequence=self._sequence,
            rewards=rewards,
            errors=(None,) * size,
            lengths=tuple(int(n) for n in self._random.integers(1, 10, size=size)),
            truncated=(False,) * size,
            policy_versions=(self.step, self.step),
            parts=tuple({"right": 0.75 * reward, "<b>form</b>": 0.25 * reward} for reward in rewards),
            status=GroupStatus.SCORED,
        )
        self._sequence += 1
        prompt = f"{self.prompts.sources[row].replace('_', ' ').capitalize()}: what comes out of number {row}?"
        return group, Transcript(prompt, tuple(completions))

    def _metrics(self, batch: Batch) -> dict[str, Any]:
        jitter = self._random.normal(size=8)
        phases = {"generate": 0.5 + 0.05 * jitter[0], "score": 0.1, "moments": 0.02, "learn": 0.3, "publish": 0.12}
        return {
            "step": self.step, "incarnation": self._incarnation, "policy_version": self.step + 1,
            "seconds": 1.0 + 0.1 * abs(jitter[1]), "phases": phases, "tokens_per_s": 180.0 + 9 * jitter[2],
            "groups_redispatched": 0, "groups_passed_by": 0, **batch.metrics, "learner/entropy": 0.5 + 0.04 * jitter[3],
            "learner/approx_kl": abs(1e-3 * jitter[4]), "learner/grad_norm": 1.5 + 0.2 * jitter[5],
            "learner/mismatch_k3": 1e-7 * abs(jitter[6]), "learner/mismatch_max": 1e-5 * abs(jitter[7]),
            **dict(zip((f"learner/{name}" for name in MISMATCH_BINS), (0.7, 0.2, 0.06, 0.03, 0.01, 0.0), strict=True)),
            "staleness/0": 1.0,
        }  # fmt: skip


def keep_tokens(
    directory: RunDirectory, step: int, completions: dict[str, list[list[str]]], incarnation: int = 0
) -> None:
    """Write values of tokens as a run does: for each group its completions, as what their tokens say. Likely ones end them."""
    random, values, texts = np.random.default_rng(step), [], []
    for group_id, of_group in completions.items():
        for index, pieces in enumerate(of_group):
            size = len(pieces)
            learner = -random.exponential(1.2, size).astype(np.float32) * np.linspace(1.5, 0.1, size, dtype=np.float32)
            sampler = (learner + random.normal(0.0, 0.04, size)).astype(np.float32)
            advantage = np.full(size, 0.8 - 0.7 * index, dtype=np.float32)
            ids = np.arange(size, dtype=np.int32)
            values.append(TokenValues(group_id, index, ids, sampler, learner, advantage))
            texts.append(pieces)
    token_file.write(directory.tokens, step, incarnation, values, texts)

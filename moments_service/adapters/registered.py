"""What verl and SkyRL call by name: token rewards with the id of each row's prompt in, token advantages out.

Both registries call a function without a step and without prompts. So the batch of one call is folded in when its policy
step is known to be over, at the latest by the next call, and the texts of prompts come in on the side.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moments_service.adapters.clusters import NamedClusters, prompt_text
from moments_service.adapters.local import LocalMoments
from moments_service.config import MomentsConfig
from moments_service.estimators import Advantages

FOLDER = "bv_blend"
"""Where the moments are in a checkpoint of the other library."""
ONE_CLUSTER = "all"
PADDING = "pad"
"""Both libraries fill batches up with rows of which the prompt id begins so."""


class RegisteredMoments:
    """The moments behind one registered estimator: at most one per process, and only in the process that asks for advantages.

    settings: reads the `MomentsConfig` from the configuration that the library hands over with the first batch.
    keep: how many prompt texts are kept at once; beyond it the oldest are forgotten. None keeps all.
    """

    def __init__(self, settings: Callable[[Any], Mapping[str, Any]], keep: int | None = None) -> None:
        self._settings = settings
        self._keep = keep
        self._moments: LocalMoments | None = None
        self._texts: dict[str, str] = {}

    @property
    def moments(self) -> LocalMoments:
        """The moments, once there are any."""
        if self._moments is None:
            raise RuntimeError("no moments yet: they are made with the first batch, by `use` or by `restore`")
        return self._moments

    def use(self, moments: LocalMoments | None) -> None:
        """Go on with these moments; None starts afresh with the next batch."""
        self._moments = moments

    def remember_prompts(self, ids: Iterable[str], prompts: Iterable[str | Sequence[Mapping[str, Any]]]) -> None:
        """Say what the prompts of these ids are, before their completions come; texts or conversations."""
        for name, prompt in zip(ids, prompts, strict=True):
            self._texts[str(name)] = prompt_text(prompt)
        while self._keep is not None and len(self._texts) > self._keep:
            del self._texts[next(iter(self._texts))]

    def advantages(self, token_level_rewards: Any, response_mask: Any, index: Any, config: Any) -> tuple[Any, Any]:
        """Advantages and returns (the same), [B, T] tensors: a completion's advantage on each token of its mask.

        token_level_rewards, response_mask: [B, T] tensors; a completion's reward is its tokens' sum, NaN for none.
        index: B prompt ids. Rows that only fill the batch up get 0 and stay out of history.
        """
        self.commit()
        rewards = token_level_rewards.detach().sum(-1).double().cpu().numpy()
        lengths = response_mask.detach().sum(-1).cpu().numpy()
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(index):
            if not str(name).startswith(PADDING):
                groups.setdefault(str(name), []).append(row)
        values = np.zeros(len(rewards))
        given = self._blend(groups, rewards, lengths, config)
        for own, rows in zip(given.values, groups.values(), strict=True):
            values[rows] = np.nan_to_num(own[: len(rows)])
        spread = token_level_rewards.new_tensor(values)[:, None] * response_mask
        return spread, spread

    def commit(self, policy_version: int | None = None) -> None:
        """The policy step of the last batch is over: fold it in, if that has not happened."""
        if self._moments is not None:
            last = self._moments.next_step - 1
            self._moments.commit(last, policy_version)

    def save(self, checkpoint: Path | str) -> None:
        """Write the moments into a checkpoint of the other library, after the policy step that it was made after."""
        self.commit()
        if self._moments is not None:
            self._moments.save(Path(checkpoint) / FOLDER)

    def restore(self, checkpoint: Path | str, config: MomentsConfig | None = None) -> bool:
        """Go on from a checkpoint. Returns False if it carries no moments: it was made by another estimator."""
        folder = Path(checkpoint) / FOLDER
        if folder.exists():
            self._moments = LocalMoments.load(folder, config)
        return folder.exists()

    def _blend(self, groups: dict[str, list[int]], rewards: np.ndarray, lengths: np.ndarray, config: Any) -> Advantages:
        if self._moments is None:
            settings = MomentsConfig.model_validate(self._settings(config))
            self._moments = LocalMoments(settings, clusters=None if self._texts else NamedClusters([ONE_CLUSTER]))
        width = max(len(rows) for rows in groups.values())
        table, sizes = np.full((len(groups), width), np.nan), np.zeros((len(groups), width))
        for m, rows in enumerate(groups.values()):
            table[m, : len(rows)], sizes[m, : len(rows)] = rewards[rows], lengths[rows]
        if isinstance(self._moments.clusters, NamedClusters):
            prompts = [self._texts.get(name, name) for name in groups]
            labels = [self._texts.get(name, ONE_CLUSTER) for name in groups]
        else:
            prompts, labels = [self._text(name) for name in groups], None
        return self._moments.advantages(self._moments.next_step, prompts, table, sizes, labels)

    def _text(self, name: str) -> str:
        if name not in self._texts:
            raise KeyError(f"prompt {name!r} is unknown: call remember_prompts before its completions are scored")
        return self._texts[name]

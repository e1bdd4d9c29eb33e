"""The feed that deals prompts out: a reproducible order, group sizes, an epoch."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.prompts.curricula import ConstantWeights, Curriculum
from actors.prompts.group_sizes import group_sizes
from actors.prompts.orders import ORDERS, UNKNOWN, PromptOrder
from actors.prompts.orders.mixed import MixedOrder
from actors.prompts.prompt import Prompt, Ticket
from moments_service.moments.expected_signal import ExpectedSignal


class PromptFeed:
    """Deals out a pool of prompts for ever, some tickets at a time; an epoch is as many tickets as there are prompts.

    order: `shuffled`, every epoch is a permutation of the pool, fixed by the seed; `signal`, clusters that promise signal come
    more often; `mopps`, `greso` and `kalman` go by how each prompt's groups came out. See `orders/`.    max_group_size: spread the completions of each deal over groups of 2 up to so
    many, see `group_sizes`; None gives every group `group_size`.    curriculum: says how the sources share the feed, each with an order of its
    own; None makes one pool of them.    fresh: sources with a share whose prompts come once each, in the pool's order.

    Its state is all that its choices depend on, but for what `learn` said of clusters: a resumed feed that learns the same
    goes on exactly where the saved one stood.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        group_size: int,
        max_group_size: int | None = None,
        order: str = "shuffled",
        curriculum: Curriculum | None = None,
        fresh: Collection[str] = (),
    ) -> None:
        if not prompts:
            raise ValueError("the prompt feed needs at least one prompt")
        # Rows are prompts by id, so that nothing depends on the order in which the pool was read.
        self._given = np.array(sorted(range(len(prompts)), key=lambda i: prompts[i].prompt_id), dtype=np.int64)
        self._prompts = [prompts[i] for i in self._given.tolist()]
        self._rows = {prompt.prompt_id: row for row, prompt in enumerate(self._prompts)}
        if len(self._rows) < len(prompts):
            raise ValueError(
                f"the pool holds {len(prompts)} prompts but {len(self._rows)} distinct ids; drop duplicates first"
            )
        self._seed = seed
        self._group_size = group_size
        self._max_group_size = max_group_size
        self._adapts = (
            order != "shuffled" or max_group_size is not None or not isinstance(curriculum, ConstantWeights | None)
        )
        self._curriculum = curriculum
        self._order = self._create_order(order, fresh)
        self._sequence = 0
        # [N] expected reward variance within each prompt, as far as the moments know.
        self._variance: np.ndarray | None = None

    @property
    def adapts(self) -> bool:
        """Whether it goes by what the moments know; `learn` must then come before the first deal."""
        return self._adapts

    @property
    def shares(self) -> dict[str, float]:
        """How its sources share the places that are dealt now, by name; empty where it is one pool."""
        return self._order.shares if isinstance(self._order, MixedOrder) else {}

    def mixture(self, prompts: Sequence[str]) -> dict[str, float]:
        """What a step says of its sources; empty where the feed is one pool. prompts: ids, one for each group of the batch.

        `feed/share/NAME`: share of the groups that are of that source.    Besides what a curriculum has to say, `feed/NAME`.
        """
        if self._curriculum is None:
            return {}
        counts = Counter(self._prompts[self._rows[one]].origin for one in prompts)
        shares = {f"feed/share/{name}": counts[name] / len(prompts) for name in self.shares}
        return shares | {f"feed/{name}": value for name, value in self._curriculum.metrics().items()}

    def learn(self, signal: ExpectedSignal) -> None:
        """From the next deal on, go by this. Once after every commit, so that it is the same whenever groups arrive.

        signal: with clusters in the order in which the feed got its prompts; outcomes that it was told before count once.
        """
        if len(signal.clusters) != len(self._prompts):
            raise ValueError(
                f"the signal is of {len(signal.clusters)} prompts, but the feed deals {len(self._prompts)}"
            )
        clusters = signal.clusters[self._given]
        # Where every group is one completion, nobody ever sees two of one prompt.
        variance = signal.within if self._group_size > 1 else signal.total
        self._variance = variance[clusters]
        self._order.learn(clusters, np.sqrt(variance))
        if (outcomes := signal.outcomes) is not None:
            rows = [self._rows.get(prompt, UNKNOWN) for prompt in outcomes.prompts]
            self._order.observe(np.array(rows, dtype=np.int64), outcomes)

    def deal(self, groups: int) -> list[Ticket]:
        """The next `groups` tickets, with `groups * group_size` completions between them; never ends."""
        places = range(self._sequence, self._sequence + groups)
        drawn = [self._order.draw(place) for place in places]
        self._sequence += groups
        sizes = self._sizes([row for row, _ in drawn])
        return [
            self._ticket(self._prompts[row], place, size, occurrence)
            for place, size, (row, occurrence) in zip(places, sizes, drawn, strict=True)
        ]

    def state(self, in_flight: Iterable[Ticket] = ()) -> dict[str, Any]:
        """What a checkpoint needs, as JSON.

        in_flight: tickets that were dealt but whose groups are in no batch up to the checkpoint.
        """
        return {
            "pool": self._pool_hash(),
            "seed": self._seed,
            "sequence": self._sequence,
            **self._order.state(),
            "in_flight": [
                {
                    "group_id": ticket.group_id,
                    "prompt_id": ticket.prompt.prompt_id,
                    "group_size": ticket.group_size,
                    "sequence": ticket.sequence,
                    "attempt": ticket.attempt,
                }
                for ticket in in_flight
            ],
        }

    def fingerprints(self) -> dict[str, str]:
        """What each prompt asks and how it is judged, by its id: what `load_state` knows the prompts of before by."""
        return {prompt.prompt_id: _fingerprint(prompt) for prompt in self._prompts}

    def load_state(self, state: Mapping[str, Any], before: Mapping[str, str] | None = None) -> tuple[Ticket, ...]:
        """Go on from a saved state. Returns the tickets that were in flight, to be dispatched again as they were.

        They keep their attempt: nothing of those groups is in the state past the checkpoint. before: the `fingerprints` of the
        feed that was saved; where all of them are still here beside new ones, an epoch of the larger pool begins at once.
        Raises ValueError for other prompts, and for another seed or order.
        """
        grown = state["pool"] != self._pool_hash()
        if grown:
            self._refuse_other_prompts(before)
        if state["seed"] != self._seed:
            raise ValueError(
                f"the checkpoint's prompt feed has seed {state['seed']}, this run has {self._seed}; "
                "resume with the same seed, or start a new run"
            )
        known = sorted(before) if grown and before is not None else list(self._rows)
        self._order.load_state(state, np.array([self._rows[one] for one in known], dtype=np.int64))
        self._sequence = state["sequence"]
        if grown:
            # An epoch that has not begun: the number of the one under way stands in ids of groups that may be in flight.
            self._sequence = -(-self._sequence // len(known)) * len(self._prompts)
        return tuple(
            Ticket(
                group_id=saved["group_id"],
                prompt=self._prompts[self._rows[saved["prompt_id"]]],
                group_size=saved["group_size"],
                sequence=saved["sequence"],
                attempt=saved["attempt"],
            )
            for saved in state["in_flight"]
        )

    def _refuse_other_prompts(self, before: Mapping[str, str] | None) -> None:
        if before is None:
            raise ValueError(
                "the checkpoint's prompt feed was dealing other prompts, and it does not say which; resume with the same "
                "`prompts`, or start a new run"
            )
        now = self.fingerprints()
        gone = [one for one in before if one not in now]
        changed = [one for one in before if one in now and now[one] != before[one]]
        if gone or changed:
            raise ValueError(
                f"the checkpoint's prompt feed was dealing other prompts: of its {len(before)}, {len(gone)} are not among the "
                f"{len(now)} of this run, and {len(changed)} have another answer or verifier now ({', '.join((gone + changed)[:3])}); "
                "a run can go on with more prompts, not without some; resume with those of before, or start a new run"
            )

    def _create_order(self, order: str, fresh: Collection[str]) -> PromptOrder:
        ids = tuple(self._rows)
        if self._curriculum is None:
            return ORDERS[order](ids, self._seed)
        origins = [prompt.origin for prompt in self._prompts]
        as_made = np.argsort(self._given).tolist()
        once = {name: np.array([r for r in as_made if origins[r] == name], dtype=np.int64) for name in fresh}
        return MixedOrder(ids, origins, self._seed, order, ORDERS[order], self._curriculum, once)

    def _ticket(self, prompt: Prompt, place: int, size: int, occurrence: int) -> Ticket:
        epoch = place // len(self._prompts)
        return Ticket(f"{prompt.prompt_id}:{epoch}:{occurrence}:0", prompt, size, place)

    def _sizes(self, rows: Sequence[int]) -> list[int]:
        if self._max_group_size is None:
            return [self._group_size] * len(rows)
        if self._variance is None:
            raise RuntimeError(
                "group sizes go by the moments, and the feed knows nothing of them yet: call learn first"
            )
        return group_sizes(self._variance[rows], len(rows) * self._group_size, self._max_group_size)

    def _pool_hash(self) -> str:
        """Hash of what is asked and how it is judged; the order of the pool does not matter."""
        lines = sorted(f"{p.prompt_id}\x1f{p.answer}\x1f{p.verifier}" for p in self._prompts)
        return hashlib.sha256("\x1e".join(lines).encode()).hexdigest()[:16]


def _fingerprint(prompt: Prompt) -> str:
    return hashlib.blake2b(f"{prompt.answer}\x1f{prompt.verifier}".encode(), digest_size=8).hexdigest()

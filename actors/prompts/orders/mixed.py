"""Sources that share the feed by weight, each in an order of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.prompts.curricula.base import Curriculum
from actors.prompts.orders.base import UNKNOWN, PromptOrder, Rows, refuse_other_order
from actors.prompts.orders.fresh import FreshOrder
from actors.prompts.turns import WHOLE, Turns, whole_shares
from moments_service.blend import Array
from moments_service.moments.outcomes import Outcomes
from moments_service.seeding import derive_seed


class MixedOrder:
    """Every place goes to a source by its share (see `Turns`), and then to the prompt that the source's own order draws.

    A source's order knows its own prompts alone, as rows 0 … n - 1, and its own places, so it goes through them at its own
    pace. Shares count from the last time that they changed. Which place belongs to which step is a matter of when it is
    dealt: the shares are those after as many steps as were learned from.
    """

    def __init__(
        self,
        ids: Sequence[str],
        origins: Sequence[str],
        seed: int,
        order: str,
        create: Callable[[Sequence[str], int], PromptOrder],
        curriculum: Curriculum,
        fresh: Mapping[str, Rows],
    ) -> None:
        """ids: N, sorted.    origins: [N] name of each prompt's source.    order, create: of every source, by name.
        fresh: rows of those sources whose prompts come once each, in the order in which they were made."""
        self._name = f"{order}, by source"
        self._origins = list(origins)
        self._curriculum = curriculum
        self._step = 0
        self._occurrences = np.zeros(len(ids), dtype=np.int64)
        self._rows: dict[str, Rows] = {}
        for name in curriculum.weights(0):
            own = [row for row, origin in enumerate(origins) if origin == name]
            self._rows[name] = fresh[name] if name in fresh else np.array(own, dtype=np.int64)
            if not len(self._rows[name]):
                raise ValueError(f"source `{name}` has a share of the feed but no prompt")
        # [N] row of each prompt within its source.
        self._place_in_source = np.zeros(len(ids), dtype=np.int64)
        for rows in self._rows.values():
            self._place_in_source[rows] = np.arange(len(rows))
        self._orders: dict[str, PromptOrder] = {}
        for name, rows in self._rows.items():
            own_ids = [ids[row] for row in rows.tolist()]
            if name in fresh:
                self._orders[name] = FreshOrder(own_ids, name)
            else:
                self._orders[name] = create(own_ids, derive_seed(seed, "mix", name))
        self._fresh = frozenset(fresh)
        self._drawn = dict.fromkeys(self._rows, 0)
        self._turns = Turns(self._shares())

    def draw(self, place: int) -> tuple[int, int]:
        if place % len(self._occurrences) == 0:
            self._occurrences[:] = 0
        name = self._turns.next()
        within, _ = self._orders[name].draw(self._drawn[name])
        self._drawn[name] += 1
        row = int(self._rows[name][within])
        occurrence = int(self._occurrences[row])
        self._occurrences[row] += 1
        return row, occurrence

    def learn(self, clusters: Rows, promise: Array) -> None:
        for name, order in self._orders.items():
            order.learn(clusters[self._rows[name]], promise)

    def observe(self, rows: Rows, outcomes: Outcomes) -> None:
        known = rows.tolist()
        sources = [None if row == UNKNOWN else self._origins[row] for row in known]
        for name, order in self._orders.items():
            own = [
                int(self._place_in_source[row]) if source == name else UNKNOWN
                for row, source in zip(known, sources, strict=True)
            ]
            order.observe(np.array(own, dtype=np.int64), outcomes)
        if outcomes.step < self._step:
            return
        self._curriculum.observe(sources, outcomes)
        self._step = outcomes.step + 1
        self._share_anew()

    @property
    def shares(self) -> dict[str, float]:
        """Of the places that are dealt now, by source."""
        return {name: share / WHOLE for name, share in self._turns.shares.items()}

    def state(self) -> dict[str, Any]:
        return {
            "order": self._name,
            "steps_learned": self._step,
            "occurrences": self._occurrences.tolist(),
            "curriculum": self._curriculum.state(),
            "sources": {
                name: {
                    "prompts": len(rows),
                    "drawn": self._drawn[name],
                    "share": self._turns.shares[name],
                    "credit": self._turns.credit[name],
                    "order": self._orders[name].state(),
                }
                for name, rows in self._rows.items()
            },
        }

    def load_state(self, state: Mapping[str, Any], rows: Rows) -> None:
        """Prompts and sources may have come since, and weights may be others: shares then count from here."""
        refuse_other_order(state, self._name)
        was, now = state["curriculum"], self._curriculum.state()
        if was["kind"] != now["kind"]:
            raise ValueError(
                f"the checkpoint's prompt feed had a curriculum of kind {was['kind']} (prompts.curriculum), this run one of "
                f"kind {now['kind']}; resume with the same, or start a new run"
            )
        known = np.array(sorted(rows.tolist()), dtype=np.int64)
        for name, saved in state["sources"].items():
            within = self._place_in_source[[row for row in known.tolist() if self._origins[row] == name]]
            if name not in self._orders or len(within) != saved["prompts"]:
                raise ValueError(
                    f"prompts.sources: {saved['prompts']} prompts of the checkpoint's feed were from source `{name}`, now "
                    f"{len(within)} of them are; leave prompts in the source that they were in, or start a new run"
                )
            self._orders[name].load_state(saved["order"], within)
            # Like the feed's own: a source that grew begins an epoch of all its prompts, but for those that come once.
            self._drawn[name] = saved["drawn"]
            if name not in self._fresh and len(within) < len(self._rows[name]):
                self._drawn[name] = -(-saved["drawn"] // len(within)) * len(self._rows[name])
        self._occurrences[rows] = state["occurrences"]
        self._step = state["steps_learned"]
        self._curriculum.load_state(was)
        shares = {name: saved["share"] for name, saved in state["sources"].items()}
        self._turns = Turns(shares, {name: saved["credit"] for name, saved in state["sources"].items()})
        self._share_anew()

    def _share_anew(self) -> None:
        if (shares := self._shares()) != self._turns.shares:
            self._turns = Turns(shares)

    def _shares(self) -> dict[str, int]:
        return whole_shares(self._curriculum.weights(self._step))

"""Whose turn it is, among parties that each have a share of all places."""

import math
from collections.abc import Mapping
from fractions import Fraction

WHOLE = 1 << 40
"""What the shares add up to. In whole numbers, so that no rounding adds up over a long run."""


def whole_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Each party's part of WHOLE, in proportion to its weight (>= 0, at least one of them > 0); 0 only for a weight of 0."""
    total = math.fsum(weights.values())
    shares = {name: max(1, round(weight / total * WHOLE)) if weight else 0 for name, weight in weights.items()}
    largest = max(shares, key=shares.__getitem__)
    shares[largest] += WHOLE - sum(shares.values())
    return shares


class Turns:
    """Deals places out so that after n of them each party had more than n s - 1 and fewer than n s + 1, s its share.

    Every place gives each party its share as credit and costs the one whose turn it is a whole place. Among those with credit
    it is the turn of whoever would be the first to be a whole place behind. Source: Pfair's windows (Baruah et al. 1996), by
    the earliest deadline first; the bound is theirs. A party without a share never has a turn.
    """

    def __init__(self, shares: Mapping[str, int], credit: Mapping[str, int] | None = None) -> None:
        """shares: `whole_shares`.    credit: in the same units, where others went before; none has any if left out."""
        self.shares = dict(shares)
        self.credit = dict.fromkeys(shares, 0) if credit is None else dict(credit)

    def next(self) -> str:
        """The party whose turn this place is."""
        for name, share in self.shares.items():
            self.credit[name] += share
        ready = [name for name, share in self.shares.items() if share and self.credit[name] > 0]
        first = min(ready, key=lambda name: Fraction(WHOLE - self.credit[name], self.shares[name]))
        self.credit[first] -= WHOLE
        return first

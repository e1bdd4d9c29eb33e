"""Which prompt comes next. An order is one file, and one line here and in `prompts.order`."""

from collections.abc import Callable, Sequence

from actors.prompts.orders.base import UNKNOWN, PromptOrder, Rows
from actors.prompts.orders.greso import GresoOrder
from actors.prompts.orders.kalman import KalmanOrder
from actors.prompts.orders.mopps import MoppsOrder
from actors.prompts.orders.shuffled import ShuffledOrder
from actors.prompts.orders.signal import SignalOrder

__all__ = ["ORDERS", "UNKNOWN", "PromptOrder", "Rows"]

ORDERS: dict[str, Callable[[Sequence[str], int], PromptOrder]] = {
    "shuffled": ShuffledOrder,
    "signal": SignalOrder,
    "mopps": MoppsOrder,
    "greso": GresoOrder,
    "kalman": KalmanOrder,
}
"""How each is made: from the sorted ids of the prompts and a seed."""

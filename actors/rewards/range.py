"""Which rewards a run takes. Beside the protocol, which verifier processes import: they start without numpy."""

from actors.rewards.protocol import Verdict
from moments_service.messages.groups import LARGEST_REWARD


def within(verdict: Verdict, bounds: tuple[float, float] | None) -> Verdict:
    """The verdict, or an error where its reward is out of `bounds`, or so large that history could not remember its square."""
    low, high = bounds or (-LARGEST_REWARD, LARGEST_REWARD)
    if verdict.reward is None or low <= verdict.reward <= high:
        return verdict
    error = f"reward {verdict.reward:g} is outside of [{low:g}, {high:g}]" + (" (rewards.range)" if bounds else "")
    return Verdict(None, error, verdict.parts, verdict.seconds, verdict.note)

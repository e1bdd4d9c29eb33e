"""A verifier that is wrong about one completion in five."""

import hashlib
from collections.abc import Sequence

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, Verdict
from actors.verifiers.exact import exact

FLIPPED = 0.2
"""Share of the completions whose reward is turned around."""


class NoisyVerifier:
    """`exact`, turned around for a fifth of the completions, whatever they say.

    Which ones hangs on the prompt and on the completion's place in its group: whoever asks again is told the same, and two equal
    completions of a group are flipped independently. Where a prompt is met once, this is noise that nobody can learn.
    With a true success of p it gives 1 with probability .2 + .6 p; so p is (measured - .2) / .6.
    """

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        return [
            Verdict(abs(exact(prompt, attempt.text) - is_flipped(prompt.prompt_id, attempt.index)))
            for attempt in attempts
        ]


def is_flipped(prompt_id: str, place: int) -> bool:
    """Whether the reward of the completion at this place of the prompt's group is turned around."""
    digest = hashlib.sha256(f"{prompt_id}\x1f{place}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < FLIPPED

"""What makes embeddings of unlike prompts alike: the same words in all of them, or differences that the encoder does not see."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

_PREFIX_CHARS = 200
"""A beginning that all texts share and that is shorter is no matter."""
_PREFIX_SHARE = 0.5
"""And so is one that is a smaller part of them."""
_COINCIDING_SHARE = 0.01
"""Encoders take some texts for the same; more than this share of them is worth a word."""
_GRID = 1e-4


def blur(sources: Sequence[str], texts: Sequence[str], embeddings: np.ndarray) -> Iterator[str]:
    """What should be known about the embeddings of a prompt set, one sentence each; nothing where all is well.

    sources: of each text, as it is said after "texts": "of source `math`".    embeddings: [N, d].
    """
    by_source = defaultdict(set)
    for source, text in zip(sources, texts, strict=True):
        by_source[source].add(text)
    for source, own in sorted(by_source.items()):
        shared = _shared(min(own), max(own))
        mean = sum(map(len, own)) / len(own)
        if len(own) > 1 and shared >= max(_PREFIX_CHARS, _PREFIX_SHARE * mean):
            yield (
                f"all {len(own)} embedded texts {source} begin with the same {shared} of {mean:.0f} characters, "
                "which makes unlike prompts alike for the clusters; put what they share in the source's `template`, "
                "and only what differs in its questions"
            )
    coinciding = _coinciding(texts, embeddings)
    if len(coinciding) > _COINCIDING_SHARE * len(set(texts)):
        one, other = coinciding[0]
        yield (
            f"{len(coinciding)} of {len(set(texts))} different texts have the embedding of another one, for example "
            f"{one[-60:]!r} and {other[-60:]!r}: they share a cluster whatever they ask; "
            "moments.clusters.by: source, difficulty or prompt does not read them"
        )


def _shared(one: str, other: str) -> int:
    """With how many same characters two texts begin."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _coinciding(texts: Sequence[str], embeddings: np.ndarray) -> list[tuple[str, str]]:
    """Texts whose embedding an unlike text had before, with that text."""
    first: dict[bytes, str] = {}
    found = []
    for text, row in dict(zip(texts, np.rint(embeddings / _GRID).astype(np.int16), strict=True)).items():
        known = first.setdefault(row.tobytes(), text)
        if _read(known) != _read(text):
            found.append((known, text))
    return found


def _read(text: str) -> str:
    return " ".join(text.casefold().split())

"""What it takes to embed prompts: by their length, and against embedding no more than the encoder's window of them.

usage: python -m benchmarks.embedding --out benchmarks/results/embedding.json [--texts 400] [--rounds 3]

Sides of a ratio take turns. Rates are of a machine as busy as it was; its load stands beside them.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, figure, write_figures
from moments_service.clusters.embedding import embed, embedder, gpu
from moments_service.clusters.encoder import PromptEncoder, encoder_path
from moments_service.config import ClusterConfig

WORDS = [
    "what",
    "is",
    "the",
    "sum",
    "of",
    "all",
    "even",
    "numbers",
    "that",
    "a",
    "train",
    "carries",
    "from",
    "one",
    "town",
    "to",
    "another",
    "before",
    "noon",
    "if",
    "each",
    "has",
]
LENGTHS = {"20 words": 20, "100 words": 100, "1000 words": 1000}


def texts_of(words: int, count: int, seed: int) -> list[str]:
    """Different texts of so many words."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(words)) + f" {place}" for place in range(count)]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rates(texts: int, rounds: int) -> list[Figure]:
    """Texts a second by length; texts longer than the window are as many times fewer as they are longer."""
    found = []
    with embedder(encoder_path("minilm"), gpu()) as embed_there:
        embed_there(["a first text, which loads what is loaded once"])
        for name, words in LENGTHS.items():
            count = max(texts * 20 // words, 4)
            samples = [texts_of(words, count, row) for row in range(rounds)]
            taken = [seconds(partial(embed_there, sample)) for sample in samples]
            found.append(figure(f"texts of {name}", count / statistics.median(taken), "1/s", "higher"))
    return found


def dividing(texts: int, rounds: int) -> list[Figure]:
    """A text of 1000 words in pieces, in times of its first 256 tokens; and what reading its words adds to a short one."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder_path("minilm")), device="cpu")

    def cut_off(sample: Sequence[str]) -> np.ndarray:
        return np.asarray(model.encode(list(sample), batch_size=64, normalize_embeddings=True, show_progress_bar=False))

    found = []
    for name, sample in (("1000 words", texts_of(1000, texts // 10, 0)), ("20 words", texts_of(20, texts, 0))):
        pairs = [(seconds(partial(embed, model, sample)), seconds(partial(cut_off, sample))) for _ in range(rounds)]
        found.append(figure(f"{name}: whole / cut off", statistics.median(own / cut for own, cut in pairs), "ratio"))
    return found


def cached(texts: int) -> list[Figure]:
    """Texts a second that the cache knows."""
    sample = texts_of(12, texts, 1)
    with tempfile.TemporaryDirectory() as cache:
        encoder = PromptEncoder(ClusterConfig(cache_dir=cache))
        encoder.encode(sample)
        again = sample * (20_000 // texts)
        return [figure("texts from the cache", len(again) / seconds(lambda: encoder.encode(again)), "1/s", "higher")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    figures = [
        *rates(arguments.texts, arguments.rounds),
        *dividing(arguments.texts, arguments.rounds),
        *cached(arguments.texts),
    ]
    write_figures(arguments.out, figures, device=gpu() or "cpu", load_average=os.getloadavg()[0])


if __name__ == "__main__":
    main()

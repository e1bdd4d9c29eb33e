"""From texts to unit vectors: a frozen sentence encoder, on the CPU or in a process of its own on a GPU."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SHORTEST_WINDOW = 128
"""Tokens that an encoder takes at least, where its files do not say."""

Embedded = tuple[npt.NDArray[np.float32], int]
"""Vectors [N, d] of unit length, and how many of the N texts had to be divided."""


def gpu() -> str | None:
    """The device that texts are embedded on where it is no CPU."""
    import torch  # seconds to import, and only a cold cache needs it

    return "cuda" if torch.cuda.is_available() else None


def window(path: Path) -> int:
    """How many tokens the encoder takes at once, those that mark the ends included."""
    about = path / "sentence_bert_config.json"
    if not about.exists():
        return _SHORTEST_WINDOW
    return int(json.loads(about.read_text(encoding="utf-8")).get("max_seq_length") or _SHORTEST_WINDOW)


@contextmanager
def embedder(path: Path, device: str | None) -> Iterator[Callable[[Sequence[str]], Embedded]]:
    """What embeds some hundred texts at a time.

    device: None embeds here on the CPU; a GPU is used by a process that ends with the context, so that all of its memory
    is there for an engine that comes after.
    """
    if device is None:
        model = _load(path, "cpu")
        yield lambda texts: embed(model, texts)
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:

        def there(texts: Sequence[str]) -> Embedded:
            try:
                return child.submit(_embed_there, path, device, texts).result()
            except BrokenProcessPool:
                raise RuntimeError(
                    f"the process that embeds prompts on {device} died; with CUDA_VISIBLE_DEVICES= they are embedded on the CPU"
                ) from None

        yield there


def embed(model: Any, texts: Sequence[str]) -> Embedded:
    """Embed texts; one of more tokens than the encoder takes is the mean of its pieces, weighted by their tokens.

    model: a SentenceTransformer.
    """
    divided = pieces(model.tokenizer, texts, model.get_max_seq_length() or _SHORTEST_WINDOW)
    flat = [piece for parts in divided for piece, _ in parts]
    vectors = np.asarray(
        model.encode(flat, batch_size=64, normalize_embeddings=True, show_progress_bar=False), dtype=np.float32
    )
    found, start = [], 0
    for parts in divided:
        own = vectors[start : start + len(parts)]
        start += len(parts)
        found.append(own[0] if len(parts) == 1 else _mean(own, [tokens for _, tokens in parts]))
    return np.stack(found), sum(len(parts) > 1 for parts in divided)


def pieces(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[tuple[str, int]]]:
    """Each text as one or more pieces, cut between words, with their numbers of tokens.

    longest: tokens of a piece, those that mark its ends included.
    """
    room = longest - tokenizer.num_special_tokens_to_add()
    read = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )
    found = []
    for row, text in enumerate(texts):
        offsets, words = read["offset_mapping"][row], read.word_ids(row)
        if len(offsets) <= room:
            found.append([(text, len(offsets))])
            continue
        parts, start = [], 0
        while start < len(offsets):
            end = min(start + room, len(offsets))
            cut = end
            while cut < len(offsets) and cut > start and words[cut] == words[cut - 1]:
                cut -= 1
            end = cut if cut > start else end
            parts.append((text[offsets[start][0] : offsets[end - 1][1]], end - start))
            start = end
        found.append(parts)
    return found


def _mean(vectors: npt.NDArray[np.float32], tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    mean = np.average(vectors.astype(np.float64), axis=0, weights=tokens)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


@lru_cache(maxsize=1)
def _load_once(path: Path, device: str) -> Any:
    return _load(path, device)


def _embed_there(path: Path, device: str, texts: Sequence[str]) -> Embedded:
    return embed(_load_once(path, device), texts)


def _load(path: Path, device: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return SentenceTransformer(str(path), device=device)

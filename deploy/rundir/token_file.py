"""`tokens/step-000010.safetensors`: what every token of some groups of a step was worth when it was trained.

Arrays over all T tokens, sample after sample, of B bytes together: token_ids [T] int32; sampler, learner, advantage [T] float32,
NaN for tokens that the policy did not sample; text [B] UTF-8; ends [T] int64, where the text of each token ends in it. The metadata
say whose they are. Written whole or not at all; a resume writes the same step again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from deploy.rundir.groups import Place
from moments_service import durable
from moments_service.durable import DamagedFileError

Floats = npt.NDArray[np.float32]
Value = Literal["logprob", "advantage", "mismatch"]
"""What tokens are coloured by: the learner's log-prob, the advantage, or how far the learner's log-prob is from the sampler's."""
_FORMAT = "bvblend-tokens-1"
_FLOATS = ("sampler", "learner", "advantage")
_SHAPES = ("token_ids", "ends", *_FLOATS)


class Values(Protocol):
    """What the learner says of a sample, see `learner.token_values`."""

    @property
    def group_id(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def token_ids(self) -> npt.NDArray[np.int32]: ...
    @property
    def sampler(self) -> Floats: ...
    @property
    def learner(self) -> Floats: ...
    @property
    def advantage(self) -> Floats: ...


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """T tokens of one completion."""

    texts: list[str]
    """[T] what each adds to those before it."""
    token_ids: npt.NDArray[np.int32]
    sampler: Floats
    learner: Floats
    advantage: Floats
    """[T] each; NaN where the policy did not sample the token."""

    def by(self, value: Value) -> Floats:
        """[T] what the tokens are coloured by."""
        if value == "mismatch":
            return self.learner - self.sampler
        return self.learner if value == "logprob" else self.advantage


def path_of(directory: Path, step: int) -> Path:
    """Of the file of a step."""
    return directory / f"step-{step:06d}.safetensors"


def write(
    directory: Path, step: int, incarnation: int, values: Sequence[Values], texts: Sequence[Sequence[str]]
) -> None:
    """Write the file of a step in place of an earlier one. texts: of each sample's tokens."""
    pieces = [piece.encode("utf-8", "replace") for of_sample in texts for piece in of_sample]
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate([getattr(one, name) for one in values]) for name in ("token_ids", *_FLOATS)
    }
    arrays["text"] = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    arrays["ends"] = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    samples = [{"group": one.group_id, "index": one.index, "tokens": len(one.token_ids)} for one in values]
    about = {"format": _FORMAT, "incarnation": str(incarnation), "samples": json.dumps(samples)}
    directory.mkdir(exist_ok=True)
    durable.write_tensors(path_of(directory, step), arrays, about)


def tokens_of(directory: Path, step: int, incarnation: int, group_id: str) -> dict[int, ReadTokens]:
    """Of a group, by the index of the sample; empty where none were kept.

    Raises DamagedFileError for a file that is no such thing.
    """
    path = path_of(directory, step)
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        return {}
    kept, found = _read(path, changed)
    return {index: tokens for group, index, tokens in found if group == group_id} if kept == incarnation else {}


def keeps_tokens(directory: Path, group: Place) -> bool:
    """Whether `tokens_of` finds any; a damaged file has some, so that it is asked for and says so."""
    try:
        return bool(tokens_of(directory, group.step, group.incarnation, group.group_id))
    except DamagedFileError:
        return True


def newest_step(directory: Path) -> int | None:
    """The last step whose tokens were kept."""
    stems = [path.stem.removeprefix("step-") for path in directory.glob("step-*.safetensors")]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=None)


@lru_cache(8)
def _read(path: Path, changed: int) -> tuple[int, list[tuple[str, int, ReadTokens]]]:
    """(incarnation, all of a file's samples). changed: when the file was, so that a new one is read anew."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ValueError(f"format {about.get('format')!r}; this version reads {_FORMAT}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return int(about["incarnation"]), list(_samples(arrays, json.loads(about["samples"])))
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from None


def _samples(arrays: dict[str, Any], listed: list[dict[str, Any]]) -> Iterator[tuple[str, int, ReadTokens]]:
    starts = np.cumsum([0] + [int(one["tokens"]) for one in listed])
    if any(arrays[name].shape != (starts[-1],) for name in _SHAPES):
        raise ValueError("its arrays are not as long as its samples")
    data, ends = arrays["text"].tobytes(), arrays["ends"].tolist()
    texts = [data[a:b].decode("utf-8", "replace") for a, b in pairwise([0, *ends])]
    for one, (first, last) in zip(listed, pairwise(starts.tolist()), strict=True):
        columns = (arrays[name][first:last] for name in ("token_ids", *_FLOATS))
        yield str(one["group"]), int(one["index"]), ReadTokens(texts[first:last], *columns)

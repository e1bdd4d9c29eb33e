"""Logs of rewards, ours or a trainer's own, as groups in order of their steps.

Three kinds are read, from one file or from a directory of them:

- JSON lines with a group each: {"step", "group", "prompt" | "cluster", "rewards", "lengths"?};
- what TRL writes with `log_completions=True`: `completions_*.parquet`, a row a completion;
- what verl writes into `trainer.rollout_data_dir`: `STEP.jsonl`, a row a completion.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from moments_service.messages.groups import LARGEST_REWARD
from moments_service.strict import first_problem


class LogError(ValueError):
    """A log cannot be read; the message names file and line and what is wrong with it."""


def _integral(value: Any) -> Any:
    """1.0 as 1: what passed through a table of floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class LoggedGroup(BaseModel):
    """The completions of one prompt in one step."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    step: Annotated[int, BeforeValidator(_integral)]
    group: Annotated[str, BeforeValidator(str)]
    rewards: tuple[float | bool | None, ...] = Field(min_length=1)
    prompt: str = ""
    cluster: Annotated[int, BeforeValidator(_integral)] = -1
    """As the log gives it, or as the codebook assigned it."""
    lengths: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "LoggedGroup":
        if len(self.model_fields_set & {"prompt", "cluster"}) != 1:
            raise ValueError("give either a prompt or a cluster")
        if self.lengths is not None and len(self.lengths) != len(self.rewards):
            raise ValueError(f"there are {len(self.lengths)} lengths of {len(self.rewards)} completions")
        for place, reward in enumerate(self.rewards):
            if reward is not None and abs(reward) > LARGEST_REWARD:
                raise ValueError(f"reward {reward} of completion {place} is beyond +-{LARGEST_REWARD:g}")
        return self

    @property
    def scored(self) -> bool:
        return any(reward is not None for reward in self.rewards)


@dataclass(slots=True)
class RewardLog:
    """What was read."""

    groups: list[LoggedGroup] = field(default_factory=list)
    """In order of their steps."""
    repeated: int = 0
    """Groups that the log has twice and that count once."""
    reward: str = ""
    """What was taken for the reward, where the log leaves it open."""


@dataclass(slots=True)
class _Read:
    """What was read so far, to know what comes again: in the same file or in another one of its directory."""

    by_name: dict[tuple[int, str], LoggedGroup] = field(default_factory=dict)
    by_content: set[tuple[int, str]] = field(default_factory=set)
    """Of completions, with their step: nobody names their groups."""
    file_before: set[str] = field(default_factory=set)
    """Of completions: TRL logs a generation again at the next step where it trains on it twice."""


def read_log(path: Path, reward: Mapping[str, float] | None = None) -> RewardLog:
    """A file or a directory of a kind above.

    reward: weights of the columns that make the reward, for logs of completions; else the sum of those that TRL has
    between completion and advantage, and verl's score. Raises LogError, FileNotFoundError.
    """
    log, read = RewardLog(), _Read()
    for file in _files(path) if path.is_dir() else [path]:
        _read_file(file, log, read, reward)
    if not log.groups:
        raise LogError(f"{path}: the log is empty")
    log.groups.sort(key=lambda group: group.step)
    return log


def parse_groups(lines: Iterable[str | bytes], name: str) -> RewardLog:
    """JSON lines with a group each. A group that stands there twice with the same rewards counts once. Raises LogError."""
    log = RewardLog()
    _add_groups(lines, name, log, _Read())
    return log


def _add_groups(lines: Iterable[str | bytes], name: str, log: RewardLog, read: _Read) -> None:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            group = LoggedGroup.model_validate_json(line)
        except ValidationError as error:
            raise LogError(f"{name}: line {number}: {first_problem(error)}") from None
        known = read.by_name.setdefault((group.step, group.group), group)
        if known is group:
            log.groups.append(group)
        elif known == group:
            log.repeated += 1
        else:
            raise LogError(
                f"{name}: line {number}: group {group.group!r} of step {group.step} was there before, with other values; "
                "give each group of a step a name of its own"
            )


def _files(directory: Path) -> list[Path]:
    """In the order of the numbers in their names: `2.jsonl` before `10.jsonl`."""
    found = sorted(directory.glob("*.parquet")) or sorted(directory.glob("*.jsonl"))
    if not found:
        raise LogError(
            f"{directory}: neither *.parquet nor *.jsonl there; name the log, or the directory that holds it"
        )
    return sorted(found, key=lambda file: [int(digits) for digits in re.findall(r"\d+", file.name)])


def _read_file(path: Path, log: RewardLog, read: _Read, reward: Mapping[str, float] | None) -> None:
    """Add the groups of a file that were not read before."""
    if path.suffix == ".parquet":
        rows, columns = _parquet_rows(path)
    else:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        if not _is_of_completions(lines):
            return _add_groups(lines, str(path), log, read)
        rows, columns = list(_json_rows(lines, path)), {"score": 1.0}
    columns = dict(reward or columns)
    log.reward = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in columns.items())
    groups = _grouped(rows, columns, path)
    for content, group in groups.items():
        if content in read.file_before or (group.step, content) in read.by_content:
            log.repeated += 1
        else:
            log.groups.append(group)
    read.by_content.update((group.step, content) for content, group in groups.items())
    read.file_before = set(groups)
    return None


def _is_of_completions(lines: Sequence[bytes]) -> bool:
    first = next((line for line in lines if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"input", "output"} <= row.keys()


def _json_rows(lines: Sequence[bytes], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a character is none
        except (ValueError, RecursionError) as error:
            raise LogError(f"{where}: {error}") from None
        if not isinstance(row, dict):
            raise LogError(f"{where}: not a JSON object")
        if missing := {"input", "output", "step"} - row.keys():
            raise LogError(f"{where}: no {min(missing)}")
        yield {**row, "prompt": row["input"], "completion": row["output"], "where": where}


def _parquet_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows, and the columns that TRL has for rewards: numbers between completion and advantage."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LogError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise LogError(f"{path}: {str(error).splitlines()[0]}") from None
    names = table.column_names
    if missing := [name for name in ("step", "prompt", "completion", "advantage") if name not in names]:
        raise LogError(
            f"{path}: no column {missing[0]}; TRL's completions have step, prompt, completion, rewards, advantage"
        )
    between = names[names.index("completion") + 1 : names.index("advantage")]
    numeric = [name for name in between if pyarrow.types.is_floating(table.schema.field(name).type)]
    rows = [{**row, "where": f"{path}: row {number}"} for number, row in enumerate(table.to_pylist(), 1)]
    return rows, dict.fromkeys(numeric, 1.0)


def _grouped(rows: Sequence[dict[str, Any]], columns: Mapping[str, float], path: Path) -> dict[str, LoggedGroup]:
    """Groups by what they hold. Rows of one step and prompt are a group, or several where a prompt came more than once."""
    together: dict[tuple[Any, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["step"], str(row.get("uid", "")), _question(row["prompt"], row["where"]))
        together.setdefault(key, []).append(row)
    counts = Counter(len(members) for members in together.values())
    usual = counts.most_common(1)[0][0] if counts else 1
    whole = usual > 1 and all(count % usual == 0 for count in counts)
    groups: dict[str, LoggedGroup] = {}
    for (step, uid, prompt), members in together.items():
        size = usual if whole else len(members)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            rewards = [_reward(row, columns) for row in part]
            name = uid or f"{path.stem}:{len(groups)}"
            try:
                group = LoggedGroup.model_validate(
                    {"step": step, "group": name, "prompt": prompt, "rewards": tuple(rewards)}
                )
            except ValidationError as error:
                raise LogError(f"{part[0]['where']}: {first_problem(error)}") from None
            content = json.dumps([prompt, [row["completion"] for row in part], rewards], default=str)
            groups.setdefault(content if content not in groups else f"{content} {len(groups)}", group)
    return groups


def _question(prompt: Any, where: str) -> str:
    """A prompt's text; of a conversation the last thing that the user says."""
    if isinstance(prompt, str):
        return prompt
    said = [message.get("content") for message in prompt or () if message.get("role") == "user"]
    if not said:
        raise LogError(f"{where}: the prompt is neither text nor a conversation in which a user says something")
    if isinstance(said[-1], str):
        return said[-1]
    return "".join(part.get("text") or "" for part in said[-1] or ())


def _reward(row: Mapping[str, Any], columns: Mapping[str, float]) -> float | None:
    """The weighted sum of what there is: TRL leaves out what a reward function did not answer. None where nothing is there."""
    known = []
    for name, weight in columns.items():
        if name not in row:
            raise LogError(f"{row['where']}: no column {name} to take the reward from")
        value = row[name]
        if value is None or value != value:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise LogError(f"{row['where']}: {name} is {value!r}, not a finite number")
        known.append(weight * value)
    return math.fsum(known) if known else None

"""Recipes: read, overridden, checked, and what is wrong with them said in one sentence each."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from deploy.config.models import RunConfig
from learner.config import START
from moments_service.config import MomentsConfig
from moments_service.paths import expanded
from moments_service.suggestions import nearest


class ConfigError(ValueError):
    """The configuration cannot be run; the message names the key, the value and the remedy."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML recipe and apply `a.b=c` overrides. Raises ConfigError with everything that is wrong."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = sorted(p.stem for p in (Path(__file__).parents[1] / "recipes").glob("*.yaml"))
        raise ConfigError(f"no recipe at {path}; shipped in deploy/recipes: {', '.join(shipped)}") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        raise ConfigError(f"{path} cannot be read: {why}; a recipe is a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no settings; a recipe is a mapping of keys to values")
    for override in overrides:
        _apply(raw, override)
    _resolve_paths(raw, path.resolve().parent)
    return validated(raw)


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same run with some keys set otherwise, as `a.b=c`. Raises ConfigError with everything that is wrong."""
    raw = config.model_dump(mode="json")
    for override in overrides:
        _apply(raw, override)
    return validated(raw)


def load_moments_config(overrides: Sequence[str]) -> MomentsConfig:
    """The moments section alone, from its defaults and `moments.a.b=c` overrides; `moments.` may be left out."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _apply(raw, override.removeprefix("moments."))
    try:
        return MomentsConfig.model_validate(raw)
    except ValidationError as error:
        problems = (_describe({**problem, "loc": ("moments", *problem["loc"])}) for problem in error.errors())
        raise ConfigError("\n".join(problems)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as a recipe that runs the same again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def validated(raw: Mapping[str, Any]) -> RunConfig:
    """Settings with the defaults of whatever they leave open. Raises ConfigError with everything that is wrong."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(problem) for problem in _causes(error.errors()))) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    override = _utf8(override)
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write it as key.path=value")
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, dict) and isinstance(node.get(part), str):
            node[part] = {"kind": node[part]}  # the bare name of a kind of thing, which has keys of its own
        node = node[_place(node, part, override)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: {part} is a value and has no keys below it")
    try:
        parsed = yaml.safe_load(value)
        comment = _comment(value)
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {override}: {value!r} is not YAML; put a text with special characters in quotes"
        ) from None
    if comment:
        raise ConfigError(
            f"--set {override}: YAML takes {comment!r} for a comment and drops it; put the value in quotes, "
            f"as in --set '{key}=\"{value.strip()}\"'"
        )
    if isinstance(node, list):
        node[_place(node, last, override)] = parsed
    else:
        node[last] = parsed


def _one_line(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _utf8(argument: str) -> str:
    """An argument of the command line, which Python has read in the locale's encoding, as the UTF-8 that recipes are."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode(errors="replace")
    return argument


def _comment(value: str) -> str:
    """What YAML drops from the end of a value; "" where it takes all of it."""
    spoken = [token for token in yaml.scan(value) if token.end_mark.index > token.start_mark.index]
    return value[spoken[-1].end_mark.index if spoken else 0 :].strip()


def _place(entries: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise ConfigError(f"--set {override}: {part} is no place in that list; it has 0 to {len(entries) - 1}")
    return int(part)


def _resolve_paths(raw: dict[str, Any], base: Path) -> None:
    """Paths in a recipe are relative to it; a policy or dataset that is no path there is left as a name."""
    policy = raw.get("policy")
    if isinstance(policy, str):
        named = _expanded("policy", policy)
        path = base / named
        if path.exists() or named.startswith(("/", ".")):
            raw["policy"] = str(path)
    learner = raw.get("learner")
    kl = learner.get("kl") if isinstance(learner, dict) else None
    if isinstance(kl, dict) and isinstance(reference := kl.get("reference"), str) and reference != START:
        kl["reference"] = str(base / _expanded("learner.kl.reference", reference))
    prompts = raw.get("prompts")
    sources = prompts.get("sources") if isinstance(prompts, dict) else None
    for place, source in enumerate(sources if isinstance(sources, list) else []):
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            named = _expanded(f"prompts.sources.{place}.path", source["path"])
            here = source.get("kind") != "dataset" or named.startswith(("/", ".")) or (base / named).exists()
            source["path"] = str(base / named) if here else named


def _expanded(key: str, path: str) -> str:
    try:
        return expanded(path)
    except ValueError as error:
        raise ConfigError(f"{key}: {error} (value {path!r})") from None


def _causes(problems: Sequence[Any]) -> list[Any]:
    """Without those that only say that too few are left of a list, because one of its entries is wrong."""
    below = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in below]


def _describe(problem: Mapping[str, Any]) -> str:
    location = problem["loc"]
    key, models = _at(location)
    if problem["type"] == "extra_forbidden":
        fields = sorted({name for model in _at(location[:-1])[1] for name in model.model_fields})
        return f"{key}: unknown key (value {problem['input']!r}){nearest(str(location[-1]), fields)}"
    if problem["type"] == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        return (
            f"{key}: no such kind (value {tag!r}){nearest(tag, [kind for model in models if (kind := _kind(model))])}"
        )
    if problem["type"] == "missing":
        return f"{key}: missing; it has no default"
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" (value {problem['input']!r})"
    return f"{key or 'recipe'}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _at(location: Sequence[str | int]) -> tuple[str, list[type[BaseModel]]]:
    """The key of a location as a recipe writes it, and the models that may sit there."""
    key: list[str] = []
    models: list[type[BaseModel]] = [RunConfig]
    for part in location:
        holders = [model for model in models if part in model.model_fields]
        if holders:
            models = [inner for model in holders for inner in models_in(model.model_fields[str(part)].annotation)]
        elif chosen := [model for model in models if _kind(model) == part]:
            models = chosen  # which of a union's kinds it is stands in the location, but in no recipe
            continue
        key.append(str(part))
    return ".".join(key), models


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return None if field is None else str(field.default)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Models that an annotation is made of, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]

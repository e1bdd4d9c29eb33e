"""What a comparison compares: estimators, and settings that are varied (`--vary prompts.order=shuffled,signal`)."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, with_overrides
from moments_service.estimators.naming import configured

OWN_KEYS = {
    "name": "the comparison names its runs",
    "runs_dir": "use --out",
    "seed": "use --seeds",
    "moments.estimator": "use --estimators",
    "checkpoint.every": "a compared run writes no checkpoints",
}
"""Keys that the comparison sets itself, and what to do instead."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the things compared: a whole configuration but for name, seed and directory."""

    estimator: str
    settings: tuple[tuple[str, Any], ...]
    """The varied keys with their values here."""
    config: RunConfig

    @property
    def name(self) -> str:
        """The estimator, and behind it what is set: `grpo prompts.order=signal`."""
        return " ".join([self.estimator, *(f"{key}={_shown(value)}" for key, value in self.settings)])

    @property
    def run_name(self) -> str:
        """The name as part of a directory's; `bv_blend:paper:update_rate=0.1` is none."""
        return re.sub("[^A-Za-z0-9._-]", "-", self.name)

    @property
    def overrides(self) -> tuple[str, ...]:
        """`key=value` that make the recipe into this, as `--set` takes them."""
        varied = (f"{key}={json.dumps(value)}" for key, value in self.settings)
        return (*varied, f"moments={self.config.moments.model_dump_json()}")


def variants(config: RunConfig, estimators: Sequence[str], vary: Sequence[str]) -> list[Variant]:
    """Every combination of an estimator with one value of each varied key, the estimators outermost.

    vary: `key=value,value,…`, each value YAML. Raises ConfigError for what is no estimator, key or value, naming it.
    """
    axes = [_axis(text) for text in vary]
    keys = [key for key, _ in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--vary {key}: given twice; write all its values in one, separated by commas")
    combinations = list(itertools.product(*([(key, value) for value in values] for key, values in axes)))
    found = [_variant(config, estimator, settings) for estimator in estimators for settings in combinations]
    names: dict[str, Variant] = {}
    for variant in found:
        other = names.setdefault(variant.run_name, variant)
        if other is not variant:
            raise ConfigError(f"{variant.name!r} and {other.name!r} are the same, or would share their run directories")
    return found


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ConfigError(f"--vary {text}: write it as key.path=value,value")
    for own, remedy in OWN_KEYS.items():
        if key == own or own.startswith(f"{key}."):
            raise ConfigError(f"--vary {text}: {own} is set by the comparison; {remedy}")
    try:
        # As a YAML list, so that commas inside [brackets] and "quotes" do not part values.
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        raise ConfigError(f"--vary {text}: {values!r} is no list of values, separated by commas") from None
    return key, parsed


def _variant(config: RunConfig, estimator: str, settings: tuple[tuple[str, Any], ...]) -> Variant:
    shown = " ".join(f"--vary {key}={_shown(value)}" for key, value in settings)
    try:
        varied = with_overrides(config, [f"{key}={json.dumps(value)}" for key, value in settings])
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from None
    try:
        moments = configured(varied.moments, estimator)
        whole = with_overrides(varied, [f"moments={moments.model_dump_json()}"])
    except ValueError as error:
        raise ConfigError(f"--estimators: {error}" + (f" (with {shown})" if shown else "")) from None
    return Variant(estimator, settings, whole)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

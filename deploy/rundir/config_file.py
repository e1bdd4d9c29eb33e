"""The configuration of a run as it stands in its directory, for those who only look: whatever version wrote it, or nobody of ours."""

from typing import Any

import yaml

from deploy.rundir.layout import RunDirectory
from deploy.rundir.reading import open_file

_MOST_BYTES = 2**18
"""Ours have six thousand."""
_DEEPEST = 40


class ConfigUnreadableError(ValueError):
    """config.yaml is not what a run writes; the message says why."""


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors, aliases and tags: a run writes none, and by aliases a small file becomes a value without end."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - as PyYAML calls it
        if self.flow_level > _DEEPEST:  # it would look through all of them again at every character
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "an anchor, an alias or a tag", event.start_mark)
        return super().compose_node(parent, index)


def read_config(directory: RunDirectory) -> dict[str, Any]:
    """config.yaml as a mapping. Raises OSError, and ConfigUnreadableError."""
    with open_file(directory.config) as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ConfigUnreadableError(f"{directory.config.name}: larger than {_MOST_BYTES} bytes")
    try:
        config = yaml.load(text.decode(), _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigUnreadableError(
            f"{directory.config.name}{line}: not YAML that a run writes: {error.problem}"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # also: not UTF-8, a date that is none, a number of 5,000 digits
        raise ConfigUnreadableError(f"{directory.config.name}: not YAML that a run writes: {error}") from None
    except RecursionError:
        raise ConfigUnreadableError(f"{directory.config.name}: nested too deeply") from None
    if not isinstance(config, dict):
        raise ConfigUnreadableError(f"{directory.config.name} holds no settings")
    return config


def estimator_of(config: dict[str, Any]) -> str:
    """How a run's estimator is called, with its variant where it is not the preset; "" where the configuration does not say."""
    moments = config.get("moments")
    estimator = moments.get("estimator") if isinstance(moments, dict) else None
    if not isinstance(estimator, dict):
        return _name(estimator)
    name, variant = _name(estimator.get("kind")), _name(estimator.get("variant", "safe"))
    return name if variant in ("safe", "") else f"{name}:{variant}"


def _name(value: Any) -> str:
    return value[:80] if isinstance(value, str) else ""


def whole_number(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 2**53 else None


def number(value: Any) -> float | None:
    """A number of a file, where it is one that can be shown."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e15 else None

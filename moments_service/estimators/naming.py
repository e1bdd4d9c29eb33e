"""Estimators as people write them: `grpo`, `bv_blend:eb`, `bv_blend:paper:update_rate=0.1`, `pass_at_k:k=8`."""

from typing import Any

import yaml
from pydantic import ValidationError

from moments_service.config import MomentsConfig
from moments_service.estimators import ESTIMATORS
from moments_service.strict import first_problem
from moments_service.suggestions import nearest


def configured(config: MomentsConfig, spec: str) -> MomentsConfig:
    """`config` with the estimator that `spec` names: a name, then options of it, separated by colons.

    An option is KEY=VALUE, or the name of a bv_blend variant; what is not said stays as in `config`, if that is of the same
    kind. Raises ValueError for what does not exist.
    """
    name, *settings = spec.split(":")
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}{nearest(name, ESTIMATORS)}")
    known = ESTIMATORS[name].model_fields.keys() - {"kind"}
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals and name != "bv_blend":
            raise ValueError(f"estimator {spec!r}: write options of {name} as KEY=VALUE; only bv_blend has variants")
        values.update({key: yaml.safe_load(value)} if equals else {"variant": key})
    for key in values:
        if key not in known:
            raise ValueError(f"estimator {spec!r}: {name} has no option {key!r}{nearest(key, known)}")
    before = config.estimator.model_dump() if config.estimator.kind == name else {"kind": name}
    try:
        estimator = ESTIMATORS[name].model_validate(before | values)
    except ValidationError as error:
        raise ValueError(f"estimator {spec!r}: {first_problem(error)}") from None
    return config.model_copy(update={"estimator": estimator})

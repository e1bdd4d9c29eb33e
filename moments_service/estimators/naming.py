"""Estimators as people write them: `grpo`, `bv_blend:eb`, `bv_blend:paper:update_rate=0.1`, `pass_at_k:k=8`."""

from typing import Any

import yaml

from moments_service.config import BlendConfig, MomentsConfig
from moments_service.estimators import create_estimator
from moments_service.suggestions import nearest


def configured(config: MomentsConfig, spec: str) -> MomentsConfig:
    """`config` with the estimator that `spec` names: a name, then settings of it, separated by colons.

    A setting is KEY=VALUE, from `moments.blend` for bv_blend and from `moments.options` for others, or the name of a
    bv_blend variant. Raises ValueError for what does not exist.
    """
    name, *settings = spec.split(":")
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals and name != "bv_blend":
            raise ValueError(f"estimator {spec!r}: write settings of {name} as KEY=VALUE; only bv_blend has variants")
        values.update({key: yaml.safe_load(value)} if equals else {"variant": key})
    if name == "bv_blend":
        for key in values:
            if key not in BlendConfig.model_fields:
                raise ValueError(
                    f"estimator {spec!r}: bv_blend has no setting {key!r}{nearest(key, BlendConfig.model_fields)}"
                )
        blend = BlendConfig.model_validate(config.blend.model_dump() | values)
        changed = config.model_copy(update={"estimator": name, "blend": blend, "options": {}})
    else:
        options = config.options if config.estimator == name else {}
        changed = config.model_copy(update={"estimator": name, "options": options | values})
    create_estimator(changed)
    return changed

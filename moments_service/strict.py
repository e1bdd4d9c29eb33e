"""How every config model of the product reads: strictly, and unions by name."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError


class StrictModel(BaseModel):
    """Base of every config model in the product: unknown keys and numbers that are not finite are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


BY_NAME = BeforeValidator(_named)
"""For unions that `kind` tells apart: the name alone stands for that kind with its defaults."""


def by_name(default: str) -> BeforeValidator:
    """As BY_NAME, where options without a `kind` are those of `default`."""

    def named(value: Any) -> Any:
        value = _named(value)
        return {"kind": default, **value} if isinstance(value, dict) else value

    return BeforeValidator(named)


def first_problem(error: ValidationError) -> str:
    """`key: what is wrong with it` of the first error."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}{': ' * bool(where)}{first['msg'].removeprefix('Value error, ')}"

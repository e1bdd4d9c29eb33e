"""docs/config.md, made of the configuration models: `python -m docs.config_reference > docs/config.md`."""

from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel

from deploy.config.models import RunConfig
from deploy.config.recipe import models_in

INTRODUCTION = """# Configuration

Every key of a recipe, made from the models by `python -m docs.config_reference`; a test holds it in step. On the command line a
key is set with `--set key=value` (`--set moments.estimator.variant=paper`, `--set prompts.sources.0.limit=100`). A key that does not
exist, or a value that does not fit, is refused before anything starts, with the nearest key that does."""


def reference() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_sections("", RunConfig, set())]) + "\n"


def _sections(prefix: str, model: type[BaseModel], written: set[type[BaseModel]]) -> Iterator[str]:
    """The model's own keys as a table, then each model below it that was not `written` before, at another key."""
    if model in written:
        return
    written.add(model)
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    kind = model.model_fields.get("kind")
    heading = f"`{prefix.removesuffix('.')}`" if prefix else "The run"
    yield from ("", f"## {heading}" + (f" of kind `{kind.default}`" if kind else ""), "", _first_paragraph(model), "")
    yield from ("| key | type | default | |", "|---|---|---|---|")
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        models = models_in(field.annotation)
        if models:
            many = get_origin(field.annotation) in (tuple, list)
            below += [(f"{prefix}{name}{'[]' if many else ''}.", inner) for inner in models]
            if field.annotation in models:
                continue
        cells = [f"`{prefix}{name}`", _type(schema["properties"][name], definitions), _default(field)]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in (*cells, field.description or "")) + " |"
    for name, inner in below:
        yield from _sections(name, inner, written)


def _first_paragraph(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = getattr(value, "kind", value)
    return "none" if value is None else f"`{value}`"


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A schema in words: `int, at least 1`."""
    if "$ref" in schema:
        return _type(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one, definitions) for one in schema["anyOf"]))
    if "oneOf" in schema:
        return "one of the kinds below"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_type(items, definitions)}"
    if schema.get("format") == "path":
        return "path"
    names = {
        "integer": "int",
        "number": "float",
        "string": "text",
        "boolean": "bool",
        "object": "mapping",
        "null": "none",
    }
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{word} {schema[key]:g}" for key, word in bounds.items() if key in schema]
    return ", ".join([names[schema.get("type", "object")], *limits])


if __name__ == "__main__":
    print(reference(), end="")

"""What a recipe says of a source's verifier: a name, a dotted path, or `kind` with the options of that one."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from actors.rewards.protocol import MAX_NAME, MAX_PARTS
from actors.sandbox.kinds import AnySandbox, NamespaceSandbox
from actors.verifiers import WITH_OPTIONS, refuse_unknown
from actors.verifiers.service_options import Http, Judge
from moments_service.strict import StrictModel


class Choice(StrictModel):
    """The completion names the right one of several labels."""

    kind: Literal["choice"] = "choice"
    labels: tuple[str, ...] = Field(tuple("ABCDEFGHIJ"), min_length=2, max_length=64)
    """The labels of the choices, in any case; the gold answer is one of them."""

    @field_validator("labels")
    @classmethod
    def _labels_can_be_told_apart(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"\w{1,40}", label) for label in labels):
            raise ValueError(f"labels are single words of up to 40 letters or digits, found {labels}")
        if len({label.casefold() for label in labels}) < len(labels):
            raise ValueError("two labels are the same")
        return labels


class Code(StrictModel):
    """The completion's program passes the tests of its prompt, in a sandbox."""

    kind: Literal["code"] = "code"
    sandbox: AnySandbox = NamespaceSandbox()
    """Where programs run: `namespaces` of this machine's kernel, an `http` service, or `none`."""
    reward: Literal["all", "share"] = "all"
    """`all`: 1 if all tests pass, else 0; `share`: the share of tests that pass."""
    seconds: float = Field(6.0, gt=0)
    """For all tests of a completion together; a program that takes longer fails the rest. Below `rewards.timeout_s`, which makes it an error."""
    memory_mib: int = Field(512, ge=64)
    """Address space of each process of a program, and memory of all together, in MiB."""


class Regex(StrictModel):
    """The completion matches a regular expression, and its group `answer`, where there is one, is the gold answer."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    """Looked for anywhere in the completion, `.` matches line ends; what `(?P<answer>…)` holds in the last match is compared with the gold answer as `exact` does."""

    @field_validator("pattern")
    @classmethod
    def _pattern_is_one(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern


class JsonSchema(StrictModel):
    """The completion is JSON of a given form."""

    kind: Literal["json_schema"] = "json_schema"
    form: dict[str, Any]
    """A JSON schema: what the completion, or its last block fenced as code, must be an instance of."""

    @field_validator("form")
    @classmethod
    def _form_is_a_schema(cls, form: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(form).check_schema(form)
        except SchemaError as error:
            raise ValueError(f"no JSON schema: {error.message}") from None
        return form


def _known(value: Any) -> Any:
    """A verifier without options is its name, one with options the mapping of them; anything unknown is refused with the nearest."""
    if isinstance(value, str):
        refuse_unknown(value)
        return {"kind": value} if value in WITH_OPTIONS else value
    if isinstance(value, dict) and isinstance(kind := value.get("kind"), str):
        refuse_unknown(kind)
        if kind in WITH_OPTIONS:
            return value
        if len(value) > 1:
            raise ValueError(f"the verifier `{kind}` has no options")
        return kind
    if isinstance(value, StrictModel):
        return value
    raise ValueError(f"give the name of a verifier, `module:callable`, or `kind` and its options, found {value!r:.80}")


def _tag(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    return str(value["kind"] if isinstance(value, dict) else value.kind)


_Name = Annotated[str, Tag("name")]
_Choice = Annotated[Choice, Tag("choice")]
_Code = Annotated[Code, Tag("code")]
_Regex = Annotated[Regex, Tag("regex")]
_JsonSchema = Annotated[JsonSchema, Tag("json_schema")]
_Judge = Annotated[Judge, Tag("judge")]
_Http = Annotated[Http, Tag("http")]
OneVerifier = Annotated[
    _Name | _Choice | _Code | _Regex | _JsonSchema | _Judge | _Http, Discriminator(_tag), BeforeValidator(_known)
]


class Weight(StrictModel):
    """One of the verifiers that make a reward together."""

    verifier: OneVerifier
    """Which."""
    weight: float = 1.0
    """What its reward is multiplied by; may be negative."""


class Weighted(StrictModel):
    """Several verifiers make one reward: the sum of theirs, each times its weight."""

    kind: Literal["weighted"] = "weighted"
    of: dict[Annotated[str, Field(min_length=1, max_length=MAX_NAME)], Weight] = Field(
        min_length=1, max_length=MAX_PARTS
    )
    """The verifiers and their weights, by the names of their parts of the reward; an error of one is an error of the whole."""

    @field_validator("of")
    @classmethod
    def _something_counts(cls, of: dict[str, Weight]) -> dict[str, Weight]:
        if not any(each.weight for each in of.values()):
            raise ValueError("every weight is 0: no completion could have a reward")
        return of


_Weighted = Annotated[Weighted, Tag("weighted")]
AnyVerifier = Annotated[
    _Name | _Choice | _Code | _Regex | _JsonSchema | _Judge | _Http | _Weighted,
    Discriminator(_tag),
    BeforeValidator(_known),
]
"""All kinds; a name alone stands for that kind with its defaults."""


def spec(verifier: str | StrictModel) -> str:
    """The text by which prompts name a verifier."""
    if isinstance(verifier, str):
        return verifier
    options = verifier.model_dump(mode="json", exclude_defaults=True)
    if isinstance(verifier, Weighted):
        options["of"] = {
            name: {"verifier": spec(each.verifier), "weight": each.weight} for name, each in verifier.of.items()
        }
    kind = str(type(verifier).model_fields["kind"].default)
    return json.dumps({"kind": kind, **options}, separators=(",", ":")) if options else kind

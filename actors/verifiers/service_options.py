"""What a recipe says of verifiers that ask a service."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from actors.redaction import is_signed, secrets_in
from actors.rewards.protocol import MAX_NAME, MAX_PARTS
from moments_service.paths import PathText
from moments_service.strict import StrictModel


class _Asked(StrictModel):
    """A service that is asked about each completion."""

    url: str = Field(pattern=r"^https?://")
    """Where it is."""
    key: str | None = None
    """Name of the environment variable that holds its API key, sent as a bearer token; none is sent if left out."""
    seconds: float = Field(8.0, gt=0)
    """For all tries of a completion together. Below `rewards.timeout_s`, which else ends it without the reason."""
    tries: int = Field(3, ge=1)
    """How often it is asked about a completion before that is an error: again at 429, 5xx, lost connections, answers that cannot be read."""
    concurrent: int = Field(32, ge=1)
    """Most completions that each verifier process asks about at once; there are up to `rewards.processes` of each rollout actor."""

    @field_validator("url")
    @classmethod
    def _url_holds_no_secret(cls, url: str) -> str:
        if is_signed(url) or "@" in url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError("no secrets in a URL: put the key into an environment variable, and its name into `key`")
        return url

    @field_validator("key")
    @classmethod
    def _key_is_known_as_a_secret(cls, key: str | None) -> str | None:
        if key is not None and not secrets_in({key: "a value"}):
            raise ValueError(
                f"{key!r} is not a name by which a secret is known, so that it would not be kept out of messages; "
                "call the variable NAME_API_KEY or NAME_TOKEN"
            )
        return key


class Http(_Asked):
    """A service judges the completion."""

    kind: Literal["http"] = "http"


def _asks(value: Any) -> Any:
    return {"asks": value} if isinstance(value, str) else value


class _Criterion(StrictModel):
    """One thing that a judge is asked about a completion."""

    asks: str = Field(min_length=1)
    """What the judge is to look at."""
    weight: float = Field(1.0, gt=0)
    """How much it counts beside the others."""


def _rubric(value: Any) -> Any:
    return {"score": value} if isinstance(value, str) else value


class _Budget(StrictModel):
    """What may be spent; a completion beyond it is an error, without a reward."""

    file: PathText
    """Where what was spent is counted, on a file system that every node sees; by all that name it, over resumes. A path from the root, or from `~`."""
    calls: int | None = Field(None, ge=1)
    """Most calls, tries included."""
    tokens: int | None = Field(None, ge=1)
    """Tokens, as the service counts them, after which no further call is made."""

    @field_validator("file")
    @classmethod
    def _file_is_the_same_everywhere(cls, file: str) -> str:
        if not Path(file).is_absolute():
            raise ValueError(f"{file!r} could be another file for each process; give the whole path")
        return file

    @model_validator(mode="after")
    def _bounds_something(self) -> "_Budget":
        if self.calls is None and self.tokens is None:
            raise ValueError("a budget without `calls` and `tokens` bounds nothing")
        return self


class Judge(_Asked):
    """A language model grades the completion by a rubric, behind a service with OpenAI's API."""

    kind: Literal["judge"] = "judge"
    model: str = Field(min_length=1)
    """Which, as the service calls it; `url` ends before `/chat/completions`."""
    rubric: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=MAX_NAME)], Annotated[_Criterion, BeforeValidator(_asks)]],
        BeforeValidator(_rubric),
    ] = Field(min_length=1, max_length=MAX_PARTS)
    """What the judge is asked: criteria by name, each a text, or `asks` and `weight`; a text alone is the only one."""
    scale: tuple[float, float] = (0.0, 10.0)
    """The numbers between which it grades; moved to [0, 1] for the reward."""
    request: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0.0})
    """What else stands in each request: `temperature`, `max_tokens`, `reasoning_effort` and the like."""
    structured: bool = True
    """Have the service hold the reply to a JSON schema (`response_format`); false for services that refuse to."""
    budget: _Budget | None = None
    """What may be spent on it; none is no bound."""

    @field_validator("scale")
    @classmethod
    def _scale_rises(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] < scale[1]:
            raise ValueError(f"[{scale[0]:g}, {scale[1]:g}] is no scale: [low, high] is")
        return scale

    @field_validator("request")
    @classmethod
    def _request_leaves_what_is_ours(cls, request: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "response_format", "stream", "n"):
            if name in request:
                raise ValueError(f"`{name}` is set by the verifier itself")
        return request

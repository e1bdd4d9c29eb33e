"""Secrets out of everything that a person may show to others: messages, error.txt, doctor's zip.

Secrets come to a run by its environment alone. Their values are known from there, whatever they look like; and what looks
like a well-known kind of secret is taken out wherever it comes from.
"""

import os
import re
from collections.abc import Iterable, Mapping

_NAMES = re.compile(r"TOKEN|SECRET|PASSW(OR)?D|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SAS", re.IGNORECASE)
_SHORTEST = 6
"""Shorter values (`1`, `token`) are modes and switches, and stand in texts for other reasons."""
_NOT_SECRET = frozenset({"token", "disabled", "enabled", "default"})
SIGNED = (
    r"(x-(amz|goog)-(signature|credential|security-token)|awsaccesskeyid|signature|sig|[\w-]{0,32}token|(api|access)?_?key|"
    r"secret|password)"
)
"""Names in a URL's query whose value opens what the URL names."""
_SHAPES = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\b(hf|sk|gh[pousr]|github_pat|glpat|xox[abeoprs])[-_][A-Za-z0-9_-]{16,}"),
    re.compile(r"\bAIza[A-Za-z0-9_-]{30,}"),
    re.compile(
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    ),  # a JWT: base64 of `{"`, twice, and a signature
    # A key's name and, next to it, the forty characters that are its secret.
    re.compile(r"\bA(KIA|SIA)[A-Z0-9]{16}\b(\W{1,4}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+]))?"),
    re.compile(r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{8,}"),
    # Base64 has digits, capitals amid a word or padding, which "basic arithmetic" has not.
    re.compile(r"(?<=\b[Bb]asic )(?=[A-Za-z+/]*[0-9=]|[A-Za-z+/]*[a-z][A-Z])[A-Za-z0-9+/]{8,}={0,2}(?![A-Za-z0-9])"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(rf"(?i)(?<=[?&]){SIGNED}=[^&\s]+"),
)
_SIGNED_URL = re.compile(rf"(?i)[?&#]{SIGNED}=[^&]")
_ASSIGNED = re.compile(
    r"(?i)([\w.-]{0,64}(?:token|secret|passw(?:or)?d|api_?key|access_?key|secret_?key)[\"']?\s*[:=]\s*[\"']?)([^\s\"',;&}]{6,})"
)


def secrets_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Name of each secret in an environment, by its value."""
    return {
        value: name
        for name, value in environment.items()
        if _NAMES.search(name) and len(value) >= _SHORTEST and value.lower() not in _NOT_SECRET
    }


def is_signed(url: str) -> bool:
    """Whether there is a secret in the URL's query: whoever has the URL may do what its signer may."""
    return _SIGNED_URL.search(url) is not None


def redacted(text: str, environments: Iterable[Mapping[str, str]] = ()) -> str:
    """The text without the secrets of this process's environment and of others, and without what looks like one."""
    known = secrets_in(os.environ)
    for environment in environments:
        known |= secrets_in(environment)
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, f"[redacted {known[value]}]")
    for shape in _SHAPES:
        text = shape.sub("[redacted]", text)
    return _ASSIGNED.sub(lambda found: found[0] if "[redacted" in found[2] else f"{found[1]}[redacted]", text)

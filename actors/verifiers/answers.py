"""Where in a completion the answer stands. A completion is hostile text: every search is linear and every piece bounded."""

import re

LONGEST_ANSWER = 500
"""Characters of the longest text that is taken for an answer."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{")
_MARKER = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]{0,200})")
_STATED = re.compile(
    r"\banswer\b(?:[ ](?:to|of|for)[ ][^\n.:=]{0,80}?)?(?:[ \t*_`]{0,6}(?:\bis\b|\bwas\b|\bare\b|\bequals\b|\bmust be\b|\bwould be\b|:|=)){1,2}"
    rf"[ \t*_`]{{0,6}}(?:\n[ \t*_`]{{0,6}}){{0,2}}(?P<rest>[^\n]{{1,{LONGEST_ANSWER}}})",
    re.IGNORECASE,
)


def boxed(text: str) -> str | None:
    """What stands inside the last \\boxed{…}; None without one, or where the last one does not close."""
    last = _last(_BOX, text)
    if last is None:
        return None
    depth, start = 1, last.end()
    for end in range(start, len(text)):
        if text[end] in "{}" and text[end - 1] != "\\":
            depth += 1 if text[end] == "{" else -1
            if depth == 0:
                return text[start:end]
    return None


def marked(text: str) -> list[str]:
    """The rest of each line behind a `####`, GSM8K's marker of an answer (and Markdown's of a heading), in order."""
    return [match[1].strip() for match in _MARKER.finditer(text)]


def stated(text: str) -> str | None:
    """The rest of the line behind the last "the answer is", "final answer:" and the like; None without one."""
    last = _last(_STATED, text)
    return None if last is None else last["rest"]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found

"""A sandbox elsewhere, by the API of SandboxFusion: `POST /run_code`."""

import httpx

from actors.sandbox.program import Ending, Outcome, Program, SandboxError

SLACK_S = 20.0
"""How much longer than the program an answer may take: the way, and the queue there."""


class RemoteSandbox:
    """Runs programs at once, as many as there are callers. What it guards is up to whoever runs it.

    Its limits are those of the service, but for seconds and memory. An answer that does not come, or says that the service
    failed, is an error of the sandbox; a program is not run twice.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client()

    def run(self, program: Program) -> Outcome:
        limits = program.limits
        asked = {
            "code": program.source,
            "language": "python",
            "stdin": program.stdin,
            "run_timeout": limits.wall_s,
            "memory_limit_MB": limits.memory_mib,
        }
        try:
            answer = self._client.post(f"{self._url}/run_code", json=asked, timeout=limits.wall_s + SLACK_S)
            answer.raise_for_status()
            said = answer.json()
            if said["status"] == "SandboxError":
                raise SandboxError(f"the sandbox at {self._url} failed: {said.get('message')}")
            return _outcome(said["run_result"])
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            raise SandboxError(f"the sandbox at {self._url} gave no answer: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        self._client.close()


def _outcome(result: dict[str, object]) -> Outcome:
    """Of the service's `CommandRunResult`."""
    endings: dict[object, Ending] = {"Finished": "ended", "TimeLimitExceeded": "wall_time"}
    if result["status"] not in endings:
        raise ValueError(f"a program that is {result['status']}")
    ending = endings[result["status"]]
    code = int(str(result["return_code"])) if ending == "ended" else 0
    if code < 0:
        ending, code = "killed", -code
    seconds = float(str(result.get("execution_time") or 0.0))
    return Outcome(ending, code, str(result.get("stdout") or ""), str(result.get("stderr") or ""), seconds, 0.0)

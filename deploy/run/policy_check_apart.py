"""The check of a policy in a process of its own: what it imports takes seconds and 400 MiB that the driver never needs again."""

import json
import signal
import subprocess
import sys
from types import TracebackType

from pydantic import TypeAdapter

from actors.import_path import module_command, module_environment
from actors.prompts.pool import PromptPool
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.run.policy_check import refuse_nowhere, refuse_unfit_adapter, refuse_unfit_policy
from deploy.run.prompt_lengths import without

_UNFIT = 2
_QUESTION = TypeAdapter(tuple[RunConfig, PromptPool])
"""As JSON: nothing is unpickled, here neither."""
_FOR_VERIFIERS = {"__all__": {"material", "row"}}
"""Of prompts: what may be of any kind, and is never looked at here."""


class PolicyCheckDiedError(RuntimeError):
    """The process that looks at the policy ended without an answer; says how."""


class PolicyCheck:
    """One child, whose imports begin at once, before the prompts are known.

    Consumes: one config with its prompts. Waits for: them on stdin. Ended by: its answer, or the end of the `with`, which kills it.
    """

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            module_command(__name__),
            env=module_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # What the driver's group is sent is for the driver, which ends this one.
            start_new_session=True,
        )

    def __enter__(self) -> "PolicyCheck":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._child.kill()
        self._child.communicate()

    def refuse_unfit(self, config: RunConfig, pool: PromptPool) -> PromptPool:
        """As `refuse_unfit_policy` and `refuse_unfit_adapter`; returns the prompts that are left. Asked once.

        Raises PolicyCheckDiedError where the child ends in any other way.
        """
        refuse_nowhere(config.policy)  # at once, without waiting for the imports
        left_out = {1: {"train": _FOR_VERIFIERS, "held_out": _FOR_VERIFIERS}}
        answer, noise = self._child.communicate(_QUESTION.dump_json((config, pool), exclude=left_out))
        said = noise.decode(errors="replace")
        code = self._child.returncode
        if code == _UNFIT:
            raise ConfigError(answer.decode())
        if code != 0:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise PolicyCheckDiedError(f"the process that looks at policy {config.policy} {how}: {last}")
        sys.stderr.write(said)
        most = config.prompts.max_tokens
        left = without(pool, frozenset(json.loads(answer.splitlines()[-1])), most)
        if not left.train:
            raise ConfigError(f"prompts.max_tokens: all training prompts have more than {most} tokens; raise it")
        return left


def main() -> None:
    """Answer with the code, and the sentence of a refusal on stdout."""
    import actors.engines.policy_files  # noqa: F401  (takes seconds, while the driver reads its prompts)

    if not (asked := sys.stdin.buffer.read()):
        return  # whoever asks ended first
    try:
        config, pool = _QUESTION.validate_json(asked)
        too_long = refuse_unfit_policy(config, pool)
        refuse_unfit_adapter(config)
    except ConfigError as error:
        sys.stdout.buffer.write(str(error).encode())
        sys.exit(_UNFIT)
    sys.stdout.buffer.write(b"\n" + json.dumps(sorted(too_long)).encode())


if __name__ == "__main__":
    main()

"""The driver asks a process of its own about the policy, and stays small."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.config.recipe import ConfigError
from deploy.run.policy_check_apart import PolicyCheck, PolicyCheckDiedError
from tests.hub import POLICY
from tests.unit.test_placement import recipe
from tests.unit.test_policy_check import SUM

pytestmark = pytest.mark.unit


def test_a_good_policy_passes_and_a_refusal_comes_through_as_one_sentence(tmp_path: Path) -> None:
    with PolicyCheck() as check, PolicyCheck() as other:
        check.refuse_unfit(recipe(policy=str(POLICY)), SUM)
        with pytest.raises(ConfigError, match=rf"policy: {tmp_path} is no Hugging Face directory") as refusal:
            other.refuse_unfit(recipe(policy=str(tmp_path)), SUM)
    assert "\n" not in str(refusal.value)


def test_a_check_that_dies_says_so_and_does_not_blame_the_policy() -> None:
    with PolicyCheck() as check:
        os.kill(check._child.pid, signal.SIGKILL)
        with pytest.raises(PolicyCheckDiedError, match="was killed by SIGKILL"):
            check.refuse_unfit(recipe(policy=str(POLICY)), SUM)


def test_who_is_not_asked_is_gone_at_once() -> None:
    with PolicyCheck() as check:
        pass
    assert check._child.returncode == -signal.SIGKILL


def test_plan_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys\nfrom deploy.cli.main import app\n"
        "app(['plan', 'deploy/recipes/cold_start.yaml'], standalone_mode=False)\n"
        "sys.exit(str(loaded) if (loaded := {'torch', 'transformers'} & sys.modules.keys()) else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr

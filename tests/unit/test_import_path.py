"""Files of the user's own that are called as our packages are: ours win in our processes, and his other modules are found."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray.cloudpickle

from actors import import_path
from actors.import_path import PACKAGES, module_command, module_environment, own_packages_first
from actors.prompts.prompt import Prompt
from actors.rewards.process import VerifierProcess
from actors.rewards.protocol import Attempt
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

JUDGE = """
import others_of_mine
def one(prompt, completion):
    return others_of_mine.REWARD
"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A directory with all four names, each ending who imports it, and a verifier."""
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
    (tmp_path / "judge_of_mine.py").write_text(JUDGE)
    (tmp_path / "others_of_mine.py").write_text("REWARD = 0.75")
    return tmp_path


def python(*arguments: str, path: Sequence[Path | str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_only_directories_with_our_names_move(users: Path, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    assert own_packages_first([str(users), other, str(ROOT), "more"]) == [other, str(ROOT), "more", str(users)]
    for path in ([str(ROOT), "more"], [other, str(ROOT)], []):
        assert own_packages_first(path) == path


def test_an_installation_that_is_not_on_the_path_is_put_before_them(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Editable:
        @staticmethod
        def find_spec(name: str, path: object, target: object = None) -> object:
            return import_path.PathFinder.find_spec(name, [str(ROOT)])

    monkeypatch.setattr(sys, "meta_path", [import_path.PathFinder, Editable])
    assert own_packages_first(["first", str(users), "last"]) == ["first", "last", str(ROOT), str(users)]


def test_a_directory_without_code_takes_no_name(tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    assert own_packages_first([str(tmp_path), str(ROOT)]) == [str(tmp_path), str(ROOT)]


@pytest.mark.parametrize("names", [("actors", "learner", "moments_service"), PACKAGES])
def test_the_command_runs_from_a_directory_with_our_names(names: Sequence[str], users: Path) -> None:
    for name in set(PACKAGES) - set(names):
        (users / f"{name}.py").unlink()
    # With all four there, `python -m` would find the user's first: as installed, the command is a script beside Python.
    safe = () if "deploy" not in names else ("-P",)
    first = [users, ROOT] if "deploy" not in names else [ROOT, users]
    done = python(*safe, "-m", "deploy.cli", "runs", str(users), path=first, cwd=users)
    assert done.returncode == 0, done.stderr


def test_a_process_of_ours_is_started_as_one(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(users), *sys.path])
    done = subprocess.run(
        module_command("deploy.cli", "runs", str(users)),
        env=module_environment(), cwd=users, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def test_a_verifier_of_the_users_is_found_beside_them(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(users), *sys.path])
    monkeypatch.chdir(users)
    process = VerifierProcess(timeout_s=10.0, start_timeout_s=60.0)
    try:
        prompt = Prompt("p", "mine", "what?", None, "judge_of_mine:one")
        assert await process.load(prompt.verifier) is None
        verdicts, died = await process.judge(prompt, [Attempt("x")])
        assert died is None and verdicts[0].reward == 0.75
    finally:
        await process.kill()


def test_a_worker_of_ray_gets_ours_before_it_knows_any_module(users: Path) -> None:
    """As Ray does it: the function by value, then the driver's directories in front, then an actor by name."""
    ray.cloudpickle.register_pickle_by_value(import_path)
    hook = ray.cloudpickle.dumps(import_path.load_own_packages)
    (users / "hook").write_bytes(hook)
    worker = f"""
import pickle, sys
sys.path.insert(0, {str(users)!r})  # as a job's working directory is
pickle.loads(open("hook", "rb").read())()
sys.path.insert(0, {str(users)!r})
import actors.placement, learner.config, moments_service.config, deploy.config.models, others_of_mine
print(actors.__file__)
"""
    done = python("-P", "-c", worker, path=[ROOT], cwd=users)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(ROOT)

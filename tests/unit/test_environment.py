"""Which packages a run needs."""

import re
import subprocess
import sys
import tomllib

import pytest

from deploy.cluster import environment
from deploy.cluster.environment import ENGINES, OF_EXTRAS, check_packages, read_constraints
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requirements}


def test_what_only_an_extra_asks_for_is_known_as_such() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set[str]().union(*map(names, project["optional-dependencies"].values()))
    pinned = set(read_constraints())
    assert pinned >= OF_EXTRAS
    assert pinned & (extras - names(project["dependencies"])) == OF_EXTRAS | set(ENGINES)


def test_a_run_does_without_the_extras_but_not_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: pin.removeprefix("==") for name, pin in read_constraints().items() if pin.startswith("==")}
    missing = {"vllm", *OF_EXTRAS}
    monkeypatch.setattr(environment, "installed", lambda name: None if name in missing else found.get(name, "3.0"))
    assert [check.name for check in check_packages() if check.problem] == []
    missing.add("faiss-cpu")
    assert [check.problem for check in check_packages() if check.problem] == ["not installed; run `make install`"]


def test_the_command_starts_where_heavy_packages_are_missing() -> None:
    heavy = ("faiss", "torch", "ray", "vllm", "transformers", "sentence_transformers", "reasoning_gym", "fastapi")
    # None in sys.modules makes an import fail as that of an absent package does.
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy!r})); import deploy.cli.main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr

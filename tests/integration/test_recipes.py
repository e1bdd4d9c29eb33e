"""The recipes that ship, from their first step to their last."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.recipes.smollm2.convert import convert
from tests.conftest import ROOT, Command, settings
from tests.integration.test_smollm2 import needs_smollm2

pytestmark = [pytest.mark.integration, pytest.mark.long]

RECIPES = ROOT / "deploy" / "recipes"
END_S = 7200.0
OF_SMOLLM2 = {"code", "smollm2", "smollm2_lora"}
"""Recipes whose policy comes from a wheel."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=needs_smollm2) if path.stem in OF_SMOLLM2 else path.stem
        for path in sorted(RECIPES.glob("*.yaml"))
        if path.stem != "gsm8k"  # whose file does not ship: test_smollm2.py
    ],
)
def test_a_recipe_learns_what_it_is_for(bvblend: Callable[..., Command], tmp_path: Path, name: str) -> None:
    policy = settings(policy=convert()) if name in OF_SMOLLM2 else []
    command = bvblend("train", RECIPES / f"{name}.yaml", *settings(runs_dir=tmp_path), *policy)
    assert command.wait(END_S) == 0, command.output()
    summary = json.loads((tmp_path / "latest" / "summary.json").read_text())
    assert summary["train"]["end"] > summary["train"]["start"]

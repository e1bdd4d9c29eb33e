"""A model under a name, as a download would have left it."""

from pathlib import Path

import pytest

from tests.conftest import ROOT

POLICY = ROOT / "deploy" / "recipes" / "cold_start" / "policy"


def cache_as(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the shipped policy into a Hugging Face cache below `home` under a model name; returns its snapshot there."""
    model = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    for file in POLICY.iterdir():
        (snapshot / file.name).symlink_to(file)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot

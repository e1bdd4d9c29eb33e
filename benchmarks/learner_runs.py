"""Real runs of a recipe, each with another part of the learner: does it train? One seed each, so read it as "works".

usage: python -m benchmarks.learner_runs --out benchmarks/results/learner_runs.json [--recipe FILE] [--runs DIR] [--only NAME …]

Writes the JSON after every run, keeps what it holds of the others, and prints the table of docs/learner.md. results/smollm2_lora.json is
`--recipe deploy/recipes/smollm2_lora.yaml --only "as shipped"`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.cluster.environment import machine, versions
from deploy.rundir.layout import RunDirectory

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "deploy" / "recipes" / "cold_start.yaml"

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "as shipped": (),
    "gspo": ("learner.loss=gspo",),
    "cispo": ("learner.loss=cispo", "learner.aggregation=token_mean"),
    "lora": ("learner.adapter={kind: lora, rank: 8}", "learner.optimizer.lr=2e-3"),
    "muon": ("learner.optimizer={kind: muon, lr: 4.0e-4}",),
    "recompute": ("learner.old_logprobs=recompute", "learner.updates_per_batch=2", "learner.correction=tis"),
    "two updates a batch": ("learner.updates_per_batch=2",),
    "world size 2": ("learner.world_size=2", "learner.cpus=1"),
}
"""Settings of each run, on top of the recipe."""


def trained(recipe: Path, settings: tuple[str, ...], runs: Path, name: str) -> dict[str, Any]:
    """Make a run, and say what it came to."""
    own = [f"runs_dir={runs}", f"name={name.replace(' ', '-')}"]
    command = [sys.executable, "-m", "deploy.cli", "train", str(recipe)]
    subprocess.run([*command, *(part for each in (*own, *settings) for part in ("--set", each))], cwd=ROOT, check=True)
    return outcome(RunDirectory((runs / "latest").resolve()), settings)


def outcome(directory: RunDirectory, settings: tuple[str, ...]) -> dict[str, Any]:
    """What a run came to: pass@1 before and after, seconds of a step and of its learner."""
    summary = json.loads((directory.path / "summary.json").read_text(encoding="utf-8"))
    skipped = sum(row["learner/skipped"] for row in directory.read_metrics())
    return {
        "settings": settings,
        "train": summary["train"],
        "held_out": summary["held_out"],
        "steps": summary["steps"],
        "step_s": summary["seconds"] / summary["steps"],
        "learner_s": summary["phases"]["learn"],
        "skipped_updates": skipped,
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a run a line."""
    lines = ["| run | settings | train pass@1 | held out |", "|---|---|---|---|"]
    for name in VARIANTS:
        if name in results:
            run = results[name]
            settings = ", ".join(f"`{each}`" for each in run["settings"]) or "the recipe's"
            train, held_out = (f"{run[part]['start']:.3f} → {run[part]['end']:.3f}" for part in ("train", "held_out"))
            lines.append(f"| {name} | {settings} | {train} | {held_out} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    arguments = parser.parse_args()
    out = arguments.out
    results = json.loads(out.read_text(encoding="utf-8"))["runs"] if out.exists() else {}
    for name in arguments.only:
        results[name] = trained(arguments.recipe.resolve(), VARIANTS[name], arguments.runs.resolve(), name)
        about = {"machine": machine(), "versions": versions(), "recipe": arguments.recipe.name}
        out.write_text(json.dumps(about | {"runs": results}, indent=2) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()

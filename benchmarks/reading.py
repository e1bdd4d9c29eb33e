"""How long a run takes to read its prompts before anything starts: rows of each kind of file, golds checked, all tokenised.

usage: python -m benchmarks.reading [--rows 200000] [--out benchmarks/results/reading.json]

One file after the other, by the clock; the policy's process is started before, as `train` does.
Embedding the questions is not in it: it is done once for a set, and benchmarks/embedding.py measures it.
"""

import argparse
import csv
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.prompts.options import PromptConfig
from actors.prompts.overlap import exact_duplicates, exact_overlap
from actors.prompts.sources import load_prompts
from benchmarks.figures import figure, write_figures
from deploy.config.recipe import load_recipe
from deploy.run.policy_check_apart import PolicyCheck

RECIPE = Path("deploy/recipes/cold_start.yaml")
HELD_OUT = 1000


def _rows(count: int) -> list[dict[str, Any]]:
    """Questions of about 40 characters, which the tiny policy takes as about as many tokens."""
    return [
        {"question": f"{n} eggs in {n % 97} boxes and {n % 13} more?", "answer": str(n), "level": "easy", "id": n}
        for n in range(count)
    ]


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_dataset(rows: list[dict[str, Any]], path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(path)


WRITERS: dict[str, Callable[[list[dict[str, Any]], Path], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "dataset": write_dataset,
}


def measured(kind: str, path: Path) -> dict[str, float]:
    """Seconds of each part of the start."""
    source = {"kind": kind, "name": "asked", "path": str(path), "held_out": HELD_OUT}
    config = load_recipe(RECIPE, ())
    settings = config.prompts.model_dump() | {"sources": [source]}
    config = config.model_copy(update={"prompts": PromptConfig.model_validate(settings)})
    with PolicyCheck() as check:
        begun = time.perf_counter()
        pool = load_prompts(config.prompts, Path())
        read = time.perf_counter()
        check.refuse_unfit(config, pool)
        tokenised = time.perf_counter()
    assert exact_overlap(pool).prompts == exact_duplicates(pool).prompts == 0
    return {
        "prompts": len(pool.train) + len(pool.held_out),
        "read_s": round(read - begun, 2),
        "tokenised_s": round(tokenised - read, 2),
        "overlap_s": round(time.perf_counter() - tokenised, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reading.json"))
    chosen = parser.parse_args()
    rows = _rows(chosen.rows)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, write_file in WRITERS.items():
            write_file(rows, Path(folder) / kind)
            found[kind] = measured(kind, Path(folder) / kind)
    write(found, chosen.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, chosen.out)


def write(found: dict[str, dict[str, float]], rows: int, peak_gib: float, out: Path) -> None:
    """Seconds of each kind of file until all is read, checked and tokenised."""
    whole = {kind: round(one["read_s"] + one["tokenised_s"] + one["overlap_s"], 2) for kind, one in found.items()}
    figures = [figure(f"{rows} rows of {kind}", seconds, "s") for kind, seconds in whole.items()]
    write_figures(out, [*figures, figure("peak memory", round(peak_gib, 2), "GiB")], rows=rows, kinds=found)


if __name__ == "__main__":
    main()

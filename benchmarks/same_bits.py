"""Whether two runs of one recipe are the same bits: everything their steps computed, and the policies that they end with.

Usage: python -m benchmarks.same_bits RUN OTHER. The oracle of a refactoring: `cold_start` with `rollout.engine=transformers` before and
after it, on one machine. Exits 1 at the first step that differs, and says in what.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

CLOCK = {"seconds", "phases", "tokens_per_s", "incarnation"}


def steps(run: Path) -> list[dict[str, Any]]:
    """Each step's row of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK and not k.endswith("_s")} for row in rows]


def digest(run: Path) -> str:
    """sha256 of the final policy."""
    return hashlib.sha256((run / "policy" / "model.safetensors").read_bytes()).hexdigest()


def main(run: Path, other: Path) -> int:
    """Compare step for step; names that only one of the two has are listed and are no difference."""
    ours, theirs = steps(run), steps(other)
    if len(ours) != len(theirs):
        print(f"{len(ours)} steps against {len(theirs)}")
        return 1
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if differing := {name: (a[name], b[name]) for name in a.keys() & b.keys() if a[name] != b[name]}:
            print(f"step {number} differs: {differing}")
            return 1
    lonely = set(ours[-1]) ^ set(theirs[-1])
    print(
        f"{len(ours)} steps are the same"
        + (f"; in one of the runs only: {', '.join(sorted(lonely))}" if lonely else "")
    )
    if digest(run) != digest(other):
        print("the final policies differ")
        return 1
    print(f"the final policies are the same: sha256 {digest(run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

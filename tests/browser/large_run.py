"""A run of any length, made by SQLite itself in the ledger's real tables: seconds for a million groups."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from moments_service.ledger.parts import part_path
from moments_service.ledger.schema import create_indexes, drop_indexes
from tests.made_runs import MadeRun

PROMPTS = 4000
CLUSTERS = 12

_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
_ID = f"printf('%016x:%d:0:0', (i % {PROMPTS}) * 2654435761, i / {PROMPTS})"
_GROUPS = f"""
INSERT INTO groups {_NUMBERS} SELECT 0, i, {_ID}, printf('%016x', (i % {PROMPTS}) * 2654435761),
printf('source_%d', i % 9), i % {CLUSTERS}, 0, 2, 0, CASE i % 4 WHEN 0 THEN 0.5 WHEN 1 THEN 1.0 ELSE 0.0 END, 21,
CASE i % 4 WHEN 0 THEN '[1.0,0.0]' WHEN 1 THEN '[1.0,1.0]' ELSE '[0.0,0.0]' END,
NULL, '[12,9]', '[false,false]', i / {{groups}}, i / {{groups}}, 0 FROM n
"""
_FOLDS = f"""
INSERT INTO folds {_NUMBERS} SELECT 0, i / {{groups}}, i, {_ID}, printf('source_%d', i % 9), i % {CLUSTERS},
CASE i % 4 WHEN 0 THEN 'mixed' WHEN 1 THEN 'solved' ELSE 'unsolved' END,
CASE i % 4 WHEN 0 THEN 0.5 WHEN 1 THEN 1.0 ELSE 0.0 END, 1, i % 4 > 0, 0.8, 0.4, 0.5,
CASE i % 4 WHEN 0 THEN '[0.7,-0.7]' WHEN 1 THEN '[0.3,0.3]' ELSE '[-0.2,-0.2]' END, 0 FROM n
"""
_COMMITS = f"INSERT INTO commits {_NUMBERS} SELECT 0, i, i + 1, NULL, NULL, 0 FROM n"


async def large_run(runs: Path, steps: int, groups: int) -> str:
    """Write a run of so many steps with so many groups each. Returns its name."""
    run = await MadeRun(runs, "large", steps=steps, groups=groups).start()
    await (await run.steps(1)).close()
    _write_metrics(run.directory.metrics, steps)
    _write_ledger(part_path(run.directory.moments, 0), steps, groups)
    return run.directory.path.name


def _write_metrics(path: Path, steps: int) -> None:
    first = json.loads(path.read_text().splitlines()[0])
    # As many series as a real step has, and one value that nothing else comes near.
    first |= {f"learner/other_{n}": 0.123456789 * n for n in range(25)}
    with path.open("w") as file:
        for step in range(steps):
            first["step"] = step
            first["policy_version"] = step + 1
            first["reward/pass_at_1"] = (step * 7919 % 1000) / 2000 + 0.4 * step / steps
            first["learner/grad_norm"] = 1000.0 if step == steps // 3 else (step * 104729 % 997) / 500
            file.write(json.dumps(first) + "\n")


def _write_ledger(path: Path, steps: int, groups: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA synchronous=OFF")
        drop_indexes(connection)
        known = connection.execute("SELECT COUNT(*) FROM groups").fetchone()[0]
        for statement in (_GROUPS, _FOLDS):
            connection.execute(statement.format(first=known, last=steps * groups - 1, groups=groups))
        connection.execute(_COMMITS.format(first=1, last=steps - 1))
        create_indexes(connection)

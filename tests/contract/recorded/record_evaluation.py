"""Record what inspect_ai and lighteval make of numbers of right samples, for tests/unit/test_evaluation_estimates.py.

In an environment of its own: pip install inspect_ai lighteval; python tests/contract/recorded/record_evaluation.py OUT.json
"""

import importlib.metadata
import json
import sys
import textwrap
from pathlib import Path
from typing import Union

import numpy as np
from inspect_ai.scorer import Score
from inspect_ai.scorer._metric import SampleScore
from inspect_ai.scorer._metrics.std import stderr
from inspect_ai.scorer._reducer.reducer import pass_at
from scipy.stats import hypergeom


def lightevals(name: str) -> type:
    """A class of lighteval's, out of its file: the package itself wants much more installed than its arithmetic does."""
    source = (
        Path(importlib.metadata.distribution("lighteval").locate_file("lighteval")) / "metrics" / "metrics_sample.py"
    ).read_text()
    start = source.index(f"class {name}(")
    end = source.find("\n\n\n", start)
    body = source[start:end].replace("(SamplingMetric, SampleLevelComputation)", "(Bare)")
    names = {
        "Bare": type("Bare", (), {"__init__": lambda self, **_: None}),
        "np": np,
        "hypergeom": hypergeom,
        "Union": Union,
        "Doc": None,
        "ModelResponse": None,
    }
    exec(textwrap.dedent(body), names | {"as_list": lambda x: x if isinstance(x, list) else [x]}, names)
    return names[name]


def main() -> None:
    cases = [(n, c, k) for n in (1, 2, 4, 7, 10) for c in range(n + 1) for k in range(1, n + 1)]
    record = {
        "versions": {name: importlib.metadata.version(name) for name in ("inspect_ai", "lighteval")},
        "pass_at_k": [],
        "g_pass_at_k": [],
        "clustered": [],
    }
    whole, by_share = lightevals("PassAtK"), lightevals("GPassAtK")
    thresholds = [0.0, 0.25, 0.5, 0.6, 0.75, 1.0]
    for n, c, k in cases:
        scores = [Score(value=1.0)] * c + [Score(value=0.0)] * (n - c)
        ours = pass_at(k)(scores).value
        theirs = object.__new__(whole)
        theirs.n, theirs.k = n, k
        grouped = object.__new__(by_share)
        grouped._k, grouped.n, grouped.thresholds, grouped.name = [k], n, thresholds, "g-pass@"
        flags = [1] * c + [0] * (n - c)
        record["pass_at_k"].append([n, c, k, float(ours), float(theirs.pass_at_k(flags))])
        record["g_pass_at_k"].append(
            [n, c, k, {name: float(value) for name, value in grouped.g_pass_at_k(flags).items()}]
        )
    random = np.random.default_rng(0)
    for prompts in (2, 5, 40):
        sizes = random.integers(1, 6, prompts)
        values = [random.random(size).round(3).tolist() for size in sizes]
        scored = [
            SampleScore(score=Score(value=value), sample_metadata={"prompt": str(i)})
            for i, group in enumerate(values)
            for value in group
        ]
        record["clustered"].append([values, float(stderr(cluster="prompt")(scored))])
    Path(sys.argv[1]).write_text(json.dumps(record))


if __name__ == "__main__":
    main()

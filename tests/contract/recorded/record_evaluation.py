"""Record what inspect_ai and lighteval make of samples, for tests/contract/test_recorded_evaluation.py.

In an environment of its own: pip install inspect_ai lighteval; python tests/contract/recorded/record_evaluation.py OUT.json
"""

import importlib.metadata
import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
from inspect_ai.scorer import Score
from inspect_ai.scorer._metric import SampleScore
from inspect_ai.scorer._metrics.std import stderr
from inspect_ai.scorer._reducer.reducer import pass_at, pass_k
from scipy.stats import hypergeom


@dataclass
class Doc:
    """lighteval's, as far as a majority reads it."""

    choices: list[str]
    query: str = ""
    gold_index: int = 0

    def get_golds(self) -> list[str]:
        return [self.choices[self.gold_index]]


@dataclass
class ModelResponse:
    """The same."""

    text: list[str]

    @property
    def final_text(self) -> list[str]:
        return self.text

    def __getitem__(self, index: int) -> "ModelResponse":
        return ModelResponse([self.text[index]])


class Bare:
    """lighteval's SamplingMetric with its defaults: nothing is normalised, and a text is right if it is the gold."""

    def __init__(self, **_: object) -> None: ...

    def preprocess(self, text: str) -> str:
        return text

    def compute_score(self, doc: Doc, model_response: ModelResponse) -> int:
        return int(doc.get_golds()[0] == model_response.final_text[0])


def lightevals(name: str) -> type:
    """A class of lighteval's, out of its file: the package itself wants much more installed than its arithmetic does."""
    source = (
        Path(importlib.metadata.distribution("lighteval").locate_file("lighteval")) / "metrics" / "metrics_sample.py"
    ).read_text()
    start = source.index(f"class {name}(")
    end = source.find("\n\n\n", start)
    body = source[start:end].replace("(SamplingMetric, SampleLevelComputation)", "(Bare)")
    names = {
        "Bare": Bare,
        "np": np,
        "hypergeom": hypergeom,
        "Union": Union,
        "Doc": Doc,
        "ModelResponse": ModelResponse,
    }
    exec(textwrap.dedent(body), names | {"as_list": lambda x: x if isinstance(x, list) else [x]}, names)
    return names[name]


def main() -> None:
    cases = [(n, c, k) for n in (1, 2, 4, 7, 10) for c in range(n + 1) for k in range(1, n + 1)]
    record = {
        "versions": {name: importlib.metadata.version(name) for name in ("inspect_ai", "lighteval")},
        "pass_at_k": [],
        "pass_hat_k": [],
        "g_pass_at_k": [],
        "majority": [],
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
        record["pass_hat_k"].append([n, c, k, float(pass_k(k)(scores).value)])
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
    majority, average = lightevals("MajAtN"), lightevals("AvgAtN")
    for n in (1, 2, 3, 5, 8):
        for _ in range(12):
            answers = [str(answer) for answer in random.integers(0, 4, n)]
            of = Doc(choices=["2"]), ModelResponse(answers)
            record["majority"].append(
                [answers, "2", float(majority(n=n).compute(*of)), float(average(n=n).compute(*of))]
            )
    Path(sys.argv[1]).write_text(json.dumps(record))


if __name__ == "__main__":
    main()

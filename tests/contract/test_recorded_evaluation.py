"""Estimates and intervals against what inspect_ai and lighteval make of the same numbers, as recorded with their versions."""

import json
from typing import Any

import pytest

from deploy.evaluation.estimates import g_pass_at_k, maj_at_k, mg_pass_at_k, pass_at_k, pass_hat_k
from deploy.evaluation.intervals import clustered_error
from deploy.evaluation.measure import measures
from tests.conftest import ROOT
from tests.made_evaluations import judged

pytestmark = pytest.mark.contract

RECORDED = json.loads((ROOT / "tests" / "contract" / "recorded" / "evaluation.json").read_text(encoding="utf-8"))


def close(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=1e-12)


def test_pass_at_k_is_that_of_both() -> None:
    assert len(RECORDED["pass_at_k"]) > 100 and RECORDED["versions"].keys() == {"inspect_ai", "lighteval"}
    for n, right, k, inspects, lightevals in RECORDED["pass_at_k"]:
        assert pass_at_k(n, right, k) == close(inspects) == close(lightevals), (n, right, k)


def test_pass_hat_k_is_inspects() -> None:
    assert len(RECORDED["pass_hat_k"]) == len(RECORDED["pass_at_k"])
    for n, right, k, value in RECORDED["pass_hat_k"]:
        assert pass_hat_k(n, right, k) == close(value), (n, right, k)


def test_the_majority_and_the_average_are_lightevals() -> None:
    assert {len(answers) for answers, *_ in RECORDED["majority"]} == {1, 2, 3, 5, 8}
    for answers, gold, majority, average in RECORDED["majority"]:
        right = [answer == gold for answer in answers]
        assert maj_at_k(answers, right, len(answers)) == close(majority), answers
        found = measures([judged(*map(float, right), answers=tuple(answers))])
        assert found["pass@1"].mean == close(average), answers


def test_g_pass_at_k_is_lightevals() -> None:
    for n, right, k, named in RECORDED["g_pass_at_k"]:
        for name, value in named.items():
            if name.startswith("mg-"):
                assert mg_pass_at_k(n, right, k) == close(value), (n, right, name)
            else:
                assert g_pass_at_k(n, right, k, float(name.rpartition("_")[2])) == close(value), (n, right, name)


def test_the_clustered_error_is_that_of_inspect() -> None:
    for clusters, error in RECORDED["clustered"]:
        assert clustered_error(clusters) == close(error)

"""Shaping rules that go by what only a rollout actor has: tokens, texts, budgets told, outliers judged again."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from actors.prompts.prompt import Prompt, Ticket
from actors.rewards.protocol import Attempt, Verdict
from actors.rollout.sample import Sample
from actors.shaping.arlcp import Arlcp
from actors.shaping.budget_curriculum import BudgetCurriculum
from actors.shaping.dot import Dot, cut
from actors.shaping.format_length import FormatLength
from actors.shaping.l1 import L1
from actors.shaping.protocol import ShapingBatch, ShapingOptions, Watching
from actors.shaping.shaper import Shaper, against_the_others
from actors.shaping.unlikeliness import Unlikeliness
from actors.shaping.witness import Witness
from tests.made_samples import made_group, made_sample
from tests.unit.made_batches import Rewards, made_batch

pytestmark = pytest.mark.unit

NAN = float("nan")
SAMPLE = made_sample("g", 0, [(False, [1, 2]), (True, [3])], np.random.default_rng(0))


def shaped(
    options: ShapingOptions,
    rewards: Rewards,
    lengths: list[list[int]],
    observed: list[list[float]],
    max_tokens: int = 100,
) -> np.ndarray:
    batch = ShapingBatch.of(made_batch(rewards, lengths), max_tokens, {options.kind: np.array(observed)})
    return options.create()(batch).rewards


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_unlikeliness_takes_most_from_what_is_likeliest() -> None:
    rewards = [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, None]]
    found = shaped(Unlikeliness(beta=0.4), rewards, [[1] * 4] * 2, [[-1.0, -9.0, -3.0, -2.0], [-5.0, -5.0, -1.0, -7.0]])
    # Ranks 3, 0, 1 of four; in the other group two that are as unlikely share the ranks 0 and 1 of three.
    expected = [[1 - 0.4 * 3 / 4, 1.0, 1 - 0.4 / 4, 0.0], [1 - 0.4 * 0.5 / 3, 1 - 0.4 * 0.5 / 3, 0.0, NAN]]
    np.testing.assert_allclose(found, expected)


def test_unlikeliness_sees_the_log_prob_of_a_whole_completion() -> None:
    sample = made_sample("g", 0, [(False, [1, 2]), (True, [3, 4]), (False, [5]), (True, [6])], np.random.default_rng(1))
    assert Unlikeliness().observe(sample, "") == pytest.approx(sum(sample.logprobs.tolist()))


def test_arlcp_takes_for_reflections_and_length() -> None:
    # Right answers: 10, 50 and 90 reflections, 20, 40 and 60 tokens; the wrong one counts nowhere.
    found = shaped(Arlcp(), [[1.0, 1.0, 1.0, 0.0, None]], [[20, 40, 60, 99, 99]], [[10, 50, 90, 500, 500]])
    w1 = [0.05, 0.10, 0.15]
    z = [-1.0, 0.0, 1.0]
    expected = [1 - w1[i] * sigmoid(z[i]) - (0.2 - w1[i]) * sigmoid(z[i]) for i in range(3)]
    np.testing.assert_allclose(found, [[*expected, 0.0, NAN]])
    # A right answer that is alone is at its own mean.
    np.testing.assert_allclose(shaped(Arlcp(), [[1.0, 0.0]], [[5, 9]], [[41.0, 0.0]]), [[0.9, 0.0]])


def test_arlcp_counts_whole_words_of_reflection() -> None:
    said = "Wait, but check: the butter HOLD ON; hmm. Double-check otherwise."
    assert Arlcp().observe(SAMPLE, said) == 6  # and neither the but of butter nor the wise of otherwise
    assert Arlcp(words=("double-check", "a.b")).observe(SAMPLE, said + " a.b axb") == 2


def test_format_and_length_need_no_labels() -> None:
    rule = FormatLength()
    lengths = [[25, 50, 75, 100, 100, 50]]
    found = shaped(rule, [[0.0, 1.0, 0.0, 1.0, 0.0, None]], lengths, [[1, 1, 1, 1, 0, 1]])
    # 1 - 1/4, 1, 1 - 2/4, -1 of length beside 1 for the form; without the form only what is below 0 counts.
    np.testing.assert_allclose(found, [[1.75, 2.0, 1.5, 0.0, -1.0, NAN]])
    batch = made_batch([[0.0, 1.0, 0.0]], [[25, 50, 75]])
    learned = Shaper([rule], 100)(batch, {"0:0:0:0": {"format_length": (1.0, 1.0, 1.0)}})
    np.testing.assert_allclose(learned.advantages, against_the_others(np.array([[1.75, 2.0, 1.5]])))
    assert learned.metrics["shaping/mean"] == pytest.approx((1.75 + 1.0 + 1.5) / 3)


@pytest.mark.parametrize(
    ("text", "formed"),
    [("so \\boxed{4}", 1.0), ("} \\boxed{4", 0.0), ("4", 0.0), ("", 0.0), ("\\boxed{" * 10_000, 0.0)],
)
def test_marks_stand_in_their_order(text: str, formed: float) -> None:
    assert FormatLength().observe(SAMPLE, text) == formed


def test_l1_pays_for_keeping_to_the_budget() -> None:
    rewards, lengths, budgets = [[1.0, 1.0, 1.0, 0.0]], [[40, 60, 100, 60]], [[60.0] * 4]
    exact = shaped(L1(tokens=(1, 100), alpha=0.01), rewards, lengths, budgets)
    np.testing.assert_allclose(exact, [[0.8, 1.0, 0.6, 0.0]])
    everywhere = L1(tokens=(1, 100), alpha=0.01, applies_to="all")
    np.testing.assert_allclose(shaped(everywhere, rewards, [[40, 60, 100, 90]], budgets), [[0.8, 1.0, 0.6, -0.3]])
    most = shaped(L1(tokens=(1, 100), alpha=0.01, mode="max"), rewards, [[20, 60, 120, 60]], budgets)
    np.testing.assert_allclose(most, [[0.9, 0.5, 0.0, 0.0]])


def test_l1_draws_a_budget_for_each_group() -> None:
    rule = L1(tokens=(10, 13))
    drawn = [rule.budget(f"p{number}:0:0:0", version=0, seed=5) for number in range(400)]
    assert drawn == [rule.budget(f"p{number}:0:0:0", version=9, seed=5) for number in range(400)]
    counts = np.bincount(drawn, minlength=14)[10:]
    assert counts.sum() == 400 and (np.abs(counts - 100) < 5 * math.sqrt(75)).all()


def test_a_curriculum_s_budget_shrinks() -> None:
    rule = BudgetCurriculum(start=60, decay=0.5, every=10)
    assert [rule.budget("g", version, 0) for version in (0, 9, 10, 25, 10_000)] == [60, 60, 30, 15, 1]
    rewards, lengths, budgets = [[1.0] * 5 + [0.0]], [[60, 30, 90, 120, 130, 60]], [[60.0] * 6]
    found = shaped(rule, rewards, lengths, budgets, max_tokens=200)
    np.testing.assert_allclose(found, [[1.5, 1.25, 1.25, 1.0, 1.0, 0.0]])
    one_sided = BudgetCurriculum(start=60, shape="one_sided", weight=1.0, applies_to="all")
    found = shaped(one_sided, rewards, lengths, budgets, max_tokens=200)
    np.testing.assert_allclose(found, [[2.0, 2.0, 1.5, 1.0, 1.0, 1.0]])


def ticket(born: int = 0) -> Ticket:
    prompt = Prompt("p", "sums", "two plus two is", "4", "exact", question="two plus two")
    return Ticket("p:0:0:0", prompt, group_size=4, sequence=0, born=born)


def test_the_budget_that_is_told_is_the_one_that_is_paid_for() -> None:
    rule = BudgetCurriculum(start=60, decay=0.5, every=10, tell=" In {budget} tokens, {x}:")
    told = Witness([rule], seed=0).told(ticket(born=10))
    assert told.prompt.text == "two plus two is In 30 tokens, {x}:"
    # It is the same prompt to whoever remembers.
    assert (told.prompt.prompt_id, told.prompt.question, told.group_id) == ("p", "two plus two", "p:0:0:0")
    silent = Witness([BudgetCurriculum(start=60, tell="")], seed=0).told(ticket())
    assert silent == ticket()
    with pytest.raises(ValueError, match="does not say where the budget stands"):
        L1(tokens=(1, 2), tell="Be brief.")
    with pytest.raises(ValueError, match=r"\[9, 3\] is no range of budgets"):
        L1(tokens=(9, 3))


async def test_a_witness_looks_with_every_rule_that_wants_to() -> None:
    samples, _ = made_group("p:0:0:0", 3, [2, 4])
    witness = Witness([Unlikeliness(), L1(tokens=(7, 7)), Arlcp()], seed=0)
    found = await witness.looked_at(ticket(), samples, ["wait, no", "4"], [1.0, None], refuse_to_judge, str)
    assert found.samples is samples and found.judge_s == 0.0
    assert found.observed["l1"] == (7.0, 7.0) and found.observed["arlcp"] == (1.0, 0.0)
    assert found.observed["unlikeliness"] == tuple(Unlikeliness().observe(sample, "") for sample in samples)


async def refuse_to_judge(attempts: Sequence[Attempt]) -> list[Verdict]:
    raise AssertionError(f"nobody asked for {attempts}")


def spoken(sample: Sample) -> list[int]:
    return [int(token) for token in sample.token_ids[sample.loss_mask]]


LENGTHS = [*[10] * 11, 200, 60]
"""Mean 28.5, deviation 51.4: what is longer than 28.5 + 51.4 x 2 = 131 is far out at two deviations."""
SAMPLES, _ = made_group("p:0:0:0", 3, LENGTHS)
TWO = Dot(deviations=2.0)


def test_dot_cuts_at_the_mean_and_some_deviations() -> None:
    limit = math.floor(np.mean(LENGTHS) + 2 * np.std(LENGTHS))
    assert TWO.cuts(LENGTHS, [1.0] * 13) == {11: limit}
    assert Dot(deviations=2.0, least_cut=200 - limit + 1).cuts(LENGTHS, [1.0] * 13) == {}
    assert TWO.cuts(LENGTHS, [1.0] * 12 + [0.0]) == TWO.cuts(LENGTHS, [1.0] * 12 + [None]) == {}


@pytest.mark.parametrize("size", range(2, 14))
def test_in_a_small_group_no_length_is_far_out(size: int) -> None:
    """One that is endlessly long lies further out than 3 deviations only where the group is large enough."""
    cuts = Dot().cuts([1] * (size - 1) + [10**9], [1.0] * size)
    assert bool(cuts) == (size >= Dot().smallest_group)


async def test_dot_has_outliers_judged_again_and_leaves_the_others_alone() -> None:
    asked: list[Attempt] = []

    async def judge(attempts: Sequence[Attempt]) -> list[Verdict]:
        asked.extend(attempts)
        return [Verdict(0.25, seconds=0.5)]

    (limit,) = TWO.cuts(LENGTHS, [1.0] * 13).values()
    texts = [""] * 13
    found = await Witness([TWO], 0).looked_at(ticket(), SAMPLES, texts, [1.0] * 13, judge, lambda ids: f"{len(ids)}")
    assert asked == [Attempt(str(limit), 11, limit, True, (str(limit),))]
    assert found.judge_s == 0.5
    np.testing.assert_array_equal(found.observed["dot"], [*[NAN] * 11, 0.25, NAN])
    assert found.samples[11].truncated and spoken(found.samples[11]) == spoken(SAMPLES[11])[:limit]
    assert all(found.samples[i] is SAMPLES[i] for i in range(13) if i != 11)
    # What it was worth whole is history; the learner gets what the cut one is worth.
    rewards = shaped(TWO, [[1.0] * 13], [LENGTHS], [list(found.observed["dot"])], 200)
    np.testing.assert_array_equal(rewards, [[*[1.0] * 11, 0.25, 1.0]])


async def test_an_outlier_that_cannot_be_judged_again_stays_as_it_was() -> None:
    async def judge(attempts: Sequence[Attempt]) -> list[Verdict]:
        return [Verdict(None, "timed out")]

    found = await Witness([TWO], 0).looked_at(ticket(), SAMPLES, [""] * 13, [1.0] * 13, judge, lambda ids: "")
    assert found.samples == SAMPLES and np.isnan(found.observed["dot"]).all()


def test_a_cut_sample_keeps_its_prompt_and_the_first_tokens() -> None:
    sample = made_sample("g", 0, [(False, [1, 2]), (True, [3, 4, 5])], np.random.default_rng(0))
    short = cut(sample, 2)
    assert short.token_ids.tolist() == [1, 2, 3, 4] and short.trained_tokens == 2
    assert short.logprobs.tolist() == sample.logprobs[:4].tolist() and short.versions.tolist() == [-1, -1, 0, 0]


def test_every_rule_that_watches_has_a_number_for_hostile_text() -> None:
    for rule in (Unlikeliness(), Arlcp(), FormatLength()):
        assert isinstance(rule, Watching)
        for text in ("", "\x00" * 100, "\N{PILE OF POO}" * 100, "wait but " * 50_000, "{" * 100_000):
            assert math.isfinite(rule.observe(SAMPLE, text))

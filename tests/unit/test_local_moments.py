"""The in-process front against the state and the estimator themselves."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moments_service.adapters.local as local
from moments_service.adapters.clusters import NamedClusters, SemanticClusters, prompt_text
from moments_service.adapters.local import LocalMoments, prompt_id
from moments_service.config import BlendConfig, ClusterConfig, MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.moments import CommittedRewards
from moments_service.state import MomentsState

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
VARIANTS = [MomentsConfig(estimator=BlendConfig(variant=variant)) for variant in ("safe", "paper", "eb", "precision")]


class TwoTopics:
    """Embeds texts with a digit one way and all others the other way."""

    def encode(self, texts: list[str]) -> np.ndarray:
        digits = [any(letter.isdigit() for letter in text) for text in texts]
        return np.array([[1.0, 0.0] if digit else [0.0, 1.0] for digit in digits], dtype=np.float32)


def batches(count: int, seed: int = 0) -> list[tuple[list[str], np.ndarray]]:
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompts = [f"{name}{generator.integers(3)}" for name in ("a", "b", "c")]
        rewards = generator.integers(0, 2, (3, 4)).astype(float)
        rewards[generator.random((3, 4)) < 0.2] = np.nan
        made.append((prompts, rewards))
    return made


def test_the_docstring_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # the embedding cache
    examples = doctest.DocTestFinder().find(LocalMoments, "LocalMoments", module=local)
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.summarize().attempted >= 8 and runner.failures == 0


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: config.blend.variant)
def test_it_gives_what_the_state_gives(config: MomentsConfig) -> None:
    labels = ["a", "b", "c"]
    moments, state = LocalMoments(config, clusters=NamedClusters(labels)), MomentsState(config, 3)
    clusters = np.arange(3)
    for step, (prompts, rewards) in enumerate(batches(6)):
        ids = tuple(prompt_id(prompt) for prompt in prompts)
        expected = state.estimate(RewardBatch(rewards, np.ones_like(rewards), ids, state.history(clusters)))
        given = moments.advantages(step, prompts, rewards, labels=labels)
        np.testing.assert_array_equal(given.values, expected.values)
        np.testing.assert_array_equal(given.weight, expected.weight)
        moments.commit(step)
        state.fold(step, CommittedRewards(clusters, rewards, ids, step))
    assert moments.last_step == 5
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(moments.arrays()[name], array)


def test_a_batch_does_not_see_itself_and_folds_once() -> None:
    moments = LocalMoments(clusters=NamedClusters())
    first = moments.advantages(0, ["p"], [[1, 0]]).values
    np.testing.assert_array_equal(moments.advantages(0, ["p"], [[1, 0]]).values, first)
    moments.commit(0)
    before = moments.arrays()
    moments.commit(0)
    moments.preview(["p"], [[1, 1]])
    for name, array in before.items():
        np.testing.assert_array_equal(moments.arrays()[name], array)
    assert moments.history(["p"]).mass[0] == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="committed already"):
        moments.advantages(0, ["p"], [[1, 0]])
    with pytest.raises(RuntimeError, match="no batch was drawn"):
        moments.commit(7)


def test_one_commit_takes_in_all_batches_of_a_policy_step() -> None:
    together, apart = LocalMoments(clusters=NamedClusters()), LocalMoments(clusters=NamedClusters())
    for step in (0, 1):
        together.advantages(together.next_step, ["p"], [[1, 0, step]])
        apart.advantages(step, ["p"], [[1, 0, step]])
        apart.commit(step, policy_version=5)
    together.commit(1, policy_version=5)
    assert together.last_step == 1 and together.next_step == 2
    for name, array in apart.arrays().items():
        np.testing.assert_array_equal(together.arrays()[name], array)


def test_labels_make_clusters_as_they_come() -> None:
    moments = LocalMoments(clusters=NamedClusters())
    for step, label in enumerate(["x", "y", "z", "x"]):
        moments.advantages(step, ["p"], [[1, 0, 0, 0]], labels=[label])
        moments.commit(step)
    assert len(moments.clusters) == 3
    history = moments.history(["x", "z", "never seen"])
    assert history.seen.tolist() == [True, True, False] and history.mass[0] > history.mass[1]


@pytest.mark.parametrize("clusters", ["labels", "meaning"])
@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: config.blend.variant)
def test_what_was_saved_goes_on_exactly(tmp_path: Path, clusters: str, config: MomentsConfig) -> None:
    encoder = TwoTopics()
    chosen = NamedClusters() if clusters == "labels" else SemanticClusters(config.clusters, encoder=encoder)
    moments = LocalMoments(config, clusters=chosen)
    made = batches(6)
    for step, (prompts, rewards) in enumerate(made[:3]):
        moments.advantages(step, prompts, rewards)
        with pytest.raises(RuntimeError, match="not committed"):
            moments.save(tmp_path / "saved")
        moments.commit(step, policy_version=2 * step)
        moments.save(tmp_path / "saved")
    restored = LocalMoments.load(tmp_path / "saved", encoder=encoder)
    assert restored.config == config and restored.last_step == 2
    for step, (prompts, rewards) in enumerate(made[3:], start=3):
        np.testing.assert_array_equal(
            restored.advantages(step, prompts, rewards).values, moments.advantages(step, prompts, rewards).values
        )
        restored.commit(step)
        moments.commit(step)
    for name, array in moments.arrays().items():
        np.testing.assert_array_equal(restored.arrays()[name], array)
    assert not (tmp_path / "saved.partial").exists()


def test_saved_moments_refuse_another_kind_of_memory(tmp_path: Path) -> None:
    moments = LocalMoments(clusters=NamedClusters())
    moments.advantages(0, ["p"], [[1, 0]])
    moments.commit(0)
    moments.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="do not fit"):
        LocalMoments.load(tmp_path / "saved", MomentsConfig(estimator=BlendConfig(variant="paper")))


def test_clusters_by_meaning_are_fitted_on_the_prompts_or_on_the_first_batch() -> None:
    config = MomentsConfig(clusters=ClusterConfig(count=2))
    early = LocalMoments(config, prompts=["1", "one"], encoder=TwoTopics())
    assert len(early.clusters) == 2
    late = LocalMoments(config, encoder=TwoTopics())
    assert len(late.clusters) == 0
    for moments in (early, late):
        moments.advantages(0, ["7", "seven"], [[1, 1], [0, 0]])
        moments.commit(0)
        history = moments.history(["3", "three"])
        assert history.mean[0] > 0.5 > history.mean[1]


def test_what_cannot_be_a_batch_is_refused() -> None:
    moments = LocalMoments(clusters=NamedClusters())
    with pytest.raises(ValueError, match="as many rows"):
        moments.advantages(0, ["p", "q"], [[1, 0]])
    for reward in (np.inf, -np.inf, 1e300):
        with pytest.raises(
            ValueError, match=f"reward {reward} of completion 1 of prompt 0 is beyond".replace("+", "[+]")
        ):
            moments.advantages(0, ["p"], [[1, reward]])
    missing = moments.advantages(0, ["p", "q"], [[1, None, 0], [None, None, None]])
    assert np.isnan(missing.values).tolist() == [[False, True, False], [True, True, True]]


def test_a_conversation_is_its_words() -> None:
    assert prompt_text("plain") == "plain"
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": None},
    ]
    assert prompt_text(conversation).strip() == "What is this?"
    assert prompt_text(conversation[:1]) == "Be brief."


def test_the_front_needs_neither_torch_nor_a_training_library() -> None:
    code = (
        "import sys, moments_service.adapters.local\n"
        "print(sorted({'torch', 'vllm', 'ray', 'transformers', 'trl', 'verl', 'skyrl'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"

"""The league: its policy is the real one, its probabilities are exact, its jobs survive kills."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from actors.prompts.renderer import Renderer
from actors.prompts.sources import load_prompts
from actors.rollout.sample import Sample
from actors.verifiers.reasoning_gym import task_score
from actors.weights.block import open_tensors
from benchmarks.league.baselines import clusters_of, estimator_of
from benchmarks.league.evidence import DOCUMENT, MARKERS, RUNS, told
from benchmarks.league.found import Found
from benchmarks.league.frozen import measure_frozen, signal_to_noise
from benchmarks.league.jobs import Job, read_jobs
from benchmarks.league.judging import Judge
from benchmarks.league.lab import Lab
from benchmarks.league.learning import Learner
from benchmarks.league.policy import Policy
from benchmarks.league.sampling import Completions, sample, success_probabilities, token_logprobs
from benchmarks.league.table import half_width
from benchmarks.league.tasks import Split, Task, load_task, prepare, recipe_of, task_file
from benchmarks.league.tries import bundles, read_prompts
from learner.job import LearnerJob
from learner.optim import AdamW
from learner.rank import LearnerRank
from moments_service.estimators import RewardBatch
from moments_service.moments import CommittedRewards
from moments_service.seeding import derive_seed
from moments_service.state import MomentsState

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "deploy" / "recipes" / "cold_start" / "policy"
END = 1


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one small task, `sums`: prompts of two sources from a file, and the cold start's policy."""
    home = tmp_path_factory.mktemp("task")
    lines = [
        {
            "question": f"State the final answer to the following arithmetic problem: {a} {sign} {b} =",
            "answer": str(answer),
        }
        for a in range(2, 9)
        for b in range(2, 9)
        for sign, answer in (("+", a + b), ("-", a - b))
    ]
    for name, sign in (("plus", "+"), ("minus", "-")):
        chosen = [json.dumps(line) for line in lines if f" {sign} " in line["question"]]
        (home / f"{name}.jsonl").write_text("\n".join(chosen))
    sources = "\n".join(
        f"    - {{kind: jsonl, name: {name}, path: {name}.jsonl, verifier: exact, held_out: 9}}"
        for name in ("plus", "minus")
    )
    (home / "sums.yaml").write_text(
        f"name: sums\npolicy: {POLICY}\nsteps: 6\nprompts:\n  sources:\n{sources}\n"
        "sampling: {max_tokens: 6}\nlearner: {optimizer: {lr: 1.0e-3}, schedule: {final_share: 1.0}}\n"
    )
    prepare(str(home / "sums.yaml"), home / "cache")
    return home / "cache"


@pytest.fixture(scope="module")
def task(cache: Path) -> Task:
    return load_task(task_file("sums", cache))


def lab_of(task: Task, **changes: object) -> Lab:
    return Lab(task, Job.model_validate({"task": "sums", "estimator": "rloo", "clusters": "source"} | changes))


def drawn_prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    one, other, third = (rng.integers(2, 300, size) for size in (9, 30, 17))
    return [np.append(other[:7], one), other, third]


@torch.no_grad()
def test_tries_have_the_logits_of_transformers() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POLICY)
    policy, prompts = Policy(POLICY), drawn_prompts()
    assert [shared for _, shared in bundles(prompts)] == [0, 7]
    said = [[[5, 6, 7], [8]], [[9], [10, 11]], [[12, 13], [14, 15, END]]]
    mask = torch.tensor([[[place < len(one) for place in range(3)] for one in both] for both in said])
    tokens = torch.zeros(mask.shape, dtype=torch.int64)
    tokens[mask] = torch.tensor([token for both in said for one in both for token in one])
    found = token_logprobs(policy, read_prompts(policy, prompts), tokens, mask)
    expected = []
    for prompt, both in zip(prompts, said, strict=True):
        for one in both:
            whole = torch.tensor([[*prompt.tolist(), *one]])
            logits = model(whole).logits[0, len(prompt) - 1 : -1]
            expected.append(logits.log_softmax(-1).gather(-1, torch.tensor(one)[:, None])[:, 0])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_completion_comes_as_often_as_its_probability_says() -> None:
    policy, prompts = Policy(POLICY), drawn_prompts()
    draws = 400
    read = read_prompts(policy, prompts)
    said = sample(policy, read.detached(), draws, 6, END, torch.Generator().manual_seed(0))
    for row, prompt in enumerate(prompts):
        completions = [tuple(said.tokens[row, member, : said.lengths[row, member]].tolist()) for member in range(draws)]
        favourite = max(set(completions), key=completions.count)
        share = completions.count(favourite) / draws
        (expected,) = success_probabilities(policy, [prompt], [np.array(favourite)])
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / draws) ** 0.5)


def test_what_the_sampler_says_of_its_tokens_is_what_the_policy_says_of_them() -> None:
    policy, prompts = Policy(POLICY), drawn_prompts()
    read = read_prompts(policy, prompts)
    said = sample(policy, read.detached(), 3, 6, END, torch.Generator().manual_seed(1))
    again = token_logprobs(policy, read, said.tokens, said.mask)
    torch.testing.assert_close(said.logprobs[said.mask], again, rtol=1e-4, atol=1e-4)
    assert said.surprisals[0, 0] == pytest.approx(-float(said.logprobs[0, 0][said.mask[0, 0]].mean()), rel=1e-5)


def test_names_of_tensors_are_those_of_the_file() -> None:
    from safetensors.torch import load_file

    written = load_file(POLICY / "model.safetensors")
    found = Policy(POLICY).tensors()
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in written)


def test_an_update_is_that_of_the_learner(task: Task) -> None:
    """The same completions and advantages make the same weights as a rank of the product's learner."""
    lab = lab_of(task, completions=24, group_size=3)
    tokens = [task.train.tokens[row] for row in (0, 1, 50, 51, 52, 7, 70, 3)]
    learner = Learner(lab.policy, task.config.learner, 6, lr=1e-4)
    read = read_prompts(lab.policy, tokens)
    said = sample(lab.policy, read.detached(), 3, 6, task.end, torch.Generator().manual_seed(3))
    advantages = np.random.default_rng(0).normal(size=(8, 3))
    learner.learn(tokens, read, said, advantages)

    config = task.config.learner.model_copy(update={"optimizer": AdamW(lr=1e-4)})
    rank = LearnerRank(config, LearnerJob(str(POLICY), 6), 0, world_size=1)
    try:
        rank.setup("127.0.0.1", 0, timeout_s=60.0)
        groups = [
            (tuple(_sample(f"g{row}", place, prompt, said, row) for place in range(3)), advantages[row])
            for row, prompt in enumerate(tokens)
        ]
        rank.step([groups], 0)
        packed = rank.export_weights(1)
    finally:
        rank.close()
    assert packed is not None
    expected, before, found = (
        open_tensors(packed[0].manifest, packed[1]),
        Policy(POLICY).tensors(),
        lab.policy.tensors(),
    )
    assert found.keys() == expected.keys()
    joined = [torch.cat([each[name].flatten() for name in sorted(found)]) for each in (found, expected, before)]
    # AdamW's first step is the rate times the sign of the gradient: where that is next to nothing, its sign is chance.
    assert float((joined[0] - joined[2]).abs().mean()) > 5e-5
    torch.testing.assert_close(joined[0], joined[1], rtol=0, atol=1e-5)
    assert float((joined[0] - joined[1]).abs().mean()) < 1e-8


def test_prompts_that_teach_nothing_need_not_be_read_again(task: Task) -> None:
    """Whether prompts were read with a gradient or not, and whichever teach nothing, the same weights come of it."""
    found = []
    for carried in (True, False):
        policy = Policy(POLICY)
        learner = Learner(policy, task.config.learner, 6, lr=1e-4)
        tokens = task.train.tokens[:12]
        for step in range(2):
            with torch.set_grad_enabled(carried):
                read = read_prompts(policy, tokens)
            said = sample(policy, read.detached(), 3, 6, task.end, torch.Generator().manual_seed(step))
            advantages = np.random.default_rng(step).normal(size=(12, 3))
            advantages[[2, 3, 7]] = 0.0
            # In the second step nothing teaches, and momentum goes on.
            learner.learn(tokens, read, said, advantages if step == 0 else np.zeros((12, 3)))
        found.append(torch.cat([tensor.flatten() for tensor in policy.tensors().values()]))
    apart = (found[0] - found[1]).abs()
    # One weight in a hundred thousand may have a gradient whose sign is chance, see above.
    assert int((apart > 1e-5).sum()) <= 8
    assert float(apart.mean()) < 1e-8


def _sample(group: str, place: int, prompt: np.ndarray, said: Completions, row: int) -> Sample:
    length = int(said.lengths[row, place])
    nothing = np.zeros(len(prompt))
    return Sample(
        group_id=group,
        index=place,
        token_ids=np.concatenate([prompt, said.tokens[row, place, :length].numpy()]).astype(np.int32),
        loss_mask=np.concatenate([nothing, np.ones(length)]).astype(np.bool_),
        logprobs=np.concatenate([nothing, said.logprobs[row, place, :length].numpy()]).astype(np.float32),
        versions=np.concatenate([nothing - 1, np.zeros(length)]).astype(np.int32),
        temperature=1.0,
    )


def test_a_job_needs_no_more_than_torch_and_its_task(cache: Path) -> None:
    code = f"""
import json, sys
from pathlib import Path
from statistics import fmean
from typing import Any
REFUSED = "ray vllm faiss sentence_transformers reasoning_gym msgspec fsspec psutil typer rich scipy fastapi matplotlib".split()
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name + " is not on a bare machine")
sys.meta_path.insert(0, Bare())
from benchmarks.league.jobs import Job
from benchmarks.league.lab import train
job = Job(task="sums", estimator="oracle", clusters="source", steps=40, lr=3e-4)
print(json.dumps(train(job, Path({str(cache)!r}))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    result = json.loads(done.stdout)
    assert [completions for completions, _ in result["curve"]] == [0, 640, 1280, 1920, 2560]
    assert set(result["end"]["held_out"]["sources"]) == {"plus", "minus"}
    assert result["end"]["train"]["pass_at"]["1"] > result["start"]["train"]["pass_at"]["1"] + 0.1


def test_the_command_does_the_jobs_of_a_file_and_shows_them(cache: Path, tmp_path: Path) -> None:
    jobs, out = tmp_path / "jobs.yaml", tmp_path / "out"
    jobs.write_text("- {task: sums, estimator: [rloo, oracle], clusters: source, steps: 3, completions: 8}\n")
    command = [sys.executable, "-m", "benchmarks.league"]
    for arguments in (
        ["run", str(jobs), "--cache", str(cache), "--out", str(out), "--workers", "2"],
        ["show", str(out)],
    ):
        done = subprocess.run(command + arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "| oracle | source | 1 |" in done.stdout and "| rloo | source | 1 |" in done.stdout


def test_the_same_job_is_the_same_run(task: Task) -> None:
    one, other, seeded = (lab_of(task, seed=seed) for seed in (0, 0, 1))
    steps = [[lab.step() for _ in range(3)] for lab in (one, other, seeded)]
    assert steps[0] == steps[1] != steps[2]


def test_clusters_are_by_name(task: Task) -> None:
    sources = np.array([prompt.source for prompt in task.train.prompts])
    by_source = clusters_of(task, "source", 0)
    assert set(sources[by_source == 0]) == {"minus"} and set(sources[by_source == 1]) == {"plus"}
    dealt = clusters_of(task, "shuffled:source", 0)
    assert sorted(dealt) == sorted(by_source) and (dealt != by_source).any()
    assert (dealt != clusters_of(task, "shuffled:source", 1)).any()
    assert len(np.unique(clusters_of(task, "prompt", 0))) == len(task.train.prompts)
    assert set(clusters_of(task, "one", 0)) == {0}
    with pytest.raises(ValueError, match="prepare it"):
        clusters_of(task, "embedding:16", 0)


def made_batch(task: Task) -> RewardBatch:
    state = MomentsState(task.config.moments, 2)
    rewards = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    state.fold(0, CommittedRewards(np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 1.0]]), ("a", "b"), 1))
    return RewardBatch(rewards, np.ones((3, 2)), ("a", "b", "c"), state.history(np.array([0, 0, 1])))


def test_controls_are_what_they_say(task: Task) -> None:
    batch, truth = made_batch(task), np.array([0.5, 0.9, 0.0])
    rewards, history = batch.rewards, batch.history

    def found(spec: str) -> np.ndarray:
        config, control = estimator_of(task.config.moments, spec)
        return (control(batch, truth) if control else config.estimator.create()(batch)).values

    np.testing.assert_allclose(found("oracle"), rewards - truth[:, None])
    np.testing.assert_allclose(found("oracle_scaled")[1], [0.1 / 0.3] * 2)
    assert np.isfinite(found("oracle_scaled")).all()
    flat = rewards.ravel()
    others = np.array([np.delete(flat, place).mean() for place in range(6)]).reshape(3, 2)
    np.testing.assert_allclose(found("batch_mean"), rewards - others)
    # The third group's cluster was never seen: each against the other of its group.
    np.testing.assert_allclose(found("cluster_mean"), [*(rewards[:2] - history.mean[:2, None]), [0.0, 0.0]])
    np.testing.assert_allclose(found("fixed:1")[:2], (rewards - history.mean[:, None])[:2] / history.variance[0] ** 0.5)
    np.testing.assert_allclose(found("fixed:0")[0], [1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(found("unscaled:grpo"), rewards - rewards.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(found("rloo")[0], [1.0, -1.0])


def test_signal_to_noise_is_that_of_the_distribution() -> None:
    rng = np.random.default_rng(0)
    mean, deviations = rng.normal(size=50), rng.uniform(0.5, 2.0, size=50)
    updates = [torch.from_numpy(mean + deviations * rng.normal(size=50)) for _ in range(400)]
    stacked = torch.stack(updates)
    expected = (mean**2).sum() / (deviations**2).sum()
    assert signal_to_noise((stacked @ stacked.T).numpy()) == pytest.approx(expected, rel=0.1)
    noise = stacked - torch.from_numpy(mean)
    assert abs(signal_to_noise((noise @ noise.T).numpy())) < 0.01


def test_estimators_are_measured_on_a_policy_that_stands_still(task: Task) -> None:
    lab = lab_of(task, frozen=["oracle", "batch_mean"])
    lab.step()
    before = lab.policy.tensors()
    found = measure_frozen(lab, mature=10, measured=40)
    assert found.keys() == {"oracle", "batch_mean", "rloo"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in lab.policy.tensors().items())
    assert found["oracle"]["baseline_error"] < 1e-9 < found["batch_mean"]["baseline_error"]
    assert found["rloo"]["efficiency"] == 1.0 and found["rloo"]["efficiency_error"] == 0.0
    # With two completions RLOO has twice the variance of a baseline that is known.
    assert found["oracle"]["efficiency"] > 1.4


@pytest.mark.parametrize("sampler", ["shuffled", "signal", "mopps", "greso", "kalman"])
def test_prompts_come_as_the_feed_deals_them(task: Task, sampler: str) -> None:
    lab = lab_of(task, order=sampler, clusters="prompt", estimator="oracle")
    assert [lab.step(look=True).baseline_error for _ in range(2)] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_groups_of_equal_rewards_make_room_for_others(task: Task) -> None:
    lab = lab_of(task, filter="dapo", group_size=4, completions=16)
    for _ in range(3):
        before = lab.completions
        drawn = lab.draw()
        equal = (drawn.history.rewards == drawn.history.rewards[:, :1]).all(axis=1)
        places = len(equal)
        assert lab.completions - before == 4 * places and len(drawn.rows) == 4
        # The first four that are not passed by; from the ninth place on none is.
        kept = [place for place in range(places) if not equal[place] or place >= 8]
        assert len(kept) == 4 and kept[-1] == places - 1
        assert drawn.batch.prompts == tuple(drawn.history.prompts[place] for place in kept)
        np.testing.assert_array_equal(drawn.batch.rewards, drawn.history.rewards[kept])
    lab.step()
    assert lab.done == 1


def test_a_noisy_verifier_is_part_of_the_truth(task: Task) -> None:
    rng = np.random.default_rng(0)
    split = Split(
        tuple(replace(prompt, verifier=f"{__name__}:judge") for prompt in task.train.prompts),
        task.train.tokens,
        task.train.answers,
    )
    judge, rows = Judge(split), np.arange(40)
    answers = [task.train.answers[row] for row in rows]
    tokens = torch.zeros(40, 50, 3, dtype=torch.int64)
    lengths = torch.full((40, 50), 3)
    right = rng.random((40, 50)) < 0.3
    for row, place in zip(*right.nonzero(), strict=True):
        tokens[row, place, : len(answers[row])] = torch.from_numpy(answers[row])
        lengths[row, place] = len(answers[row])
    nothing = np.zeros((40, 50))
    said = Completions(tokens, lengths, torch.zeros(40, 50, 3), nothing, 0.0)
    np.testing.assert_array_equal(Judge(task.train).rewards(rows, said), right)
    np.testing.assert_allclose(judge.expected(rows, np.full(40, 0.3)), 0.3 * 0.75 + 0.7 * 0.25)
    assert judge.rewards(rows, said).mean() == pytest.approx(0.4, abs=4 * (0.24 / 2000) ** 0.5)


def test_verdicts_are_nearly_always_those_of_the_products_verifiers(tmp_path: Path) -> None:
    """On what the cold policy says to all families; what differs is right for the product, as `07` is for 7."""
    config = recipe_of("cold_start")
    few = tuple(source.model_copy(update={"limit": 12, "held_out": 0}) for source in config.prompts.sources)
    pool = load_prompts(config.prompts.model_copy(update={"sources": few}), tmp_path).train
    renderer = Renderer.load(str(POLICY), chat=False, stop=())
    split = Split(
        pool,
        tuple(np.array(renderer.opening_ids(prompt.text)) for prompt in pool),
        tuple(np.array([*renderer.opening_ids(prompt.answer or ""), END]) for prompt in pool),
    )
    policy, size = Policy(POLICY), 24
    read = read_prompts(policy, split.tokens)
    said = sample(policy, read.detached(), size, 10, END, torch.Generator().manual_seed(0))
    found = Judge(split).rewards(np.arange(len(pool)), said)
    texts = [
        [renderer.text(said.tokens[row, place, : said.lengths[row, place]].tolist()) for place in range(size)]
        for row in range(len(pool))
    ]
    expected = np.array([[task_score(prompt, text) for text in row] for prompt, row in zip(pool, texts, strict=True)])
    assert found.mean() > 0.05
    assert (found <= expected).all() and (found != expected).mean() < 0.002


FLIPPED = 0.25
"""Share of the rewards that this module, as a noisy verifier, turns around."""


def is_flipped(prompt_id: str, place: int) -> bool:
    return derive_seed(0, prompt_id, place) < FLIPPED * 2**63


def test_evidence_is_what_the_runs_say() -> None:
    """Every number of the league in the documents comes from the JSON: python -m benchmarks.league.evidence write."""
    runs = Found(json.loads(RUNS.read_text(encoding="utf-8"))["runs"])
    for path, text in told(runs).items():
        found = MARKERS.search(path.read_text(encoding="utf-8"))
        assert found is not None, path
        assert found[0].split("\n", 1)[1].rsplit("<!--", 1)[0].strip() == text.strip(), path


def test_the_readme_says_of_smollm2_what_was_compared() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "compare_smollm2.json").read_text())
    ours, grpo = found["hierarchical"], found["grpo"]

    def level(runs: list[dict[str, Any]], split: str, when: str) -> str:
        return f"{fmean(run[split][when] for run in runs):.2f}".lstrip("0")

    gains = [one["train"]["end"] - other["train"]["end"] for one, other in zip(ours, grpo, strict=True)]
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"`bvblend compare deploy/recipes/smollm2.yaml --seeds {len(ours)}` (n = {len(ours)} each" in said
    assert (
        f"goes from {level(ours, 'train', 'start')} to {level(ours, 'train', 'end')} with the default and to {level(grpo, 'train', 'end')} "
        f"with GRPO (+{fmean(gains):.2f} ± {half_width(gains):.2f}".replace("+0", "+").replace("± 0", "± ")
        in said
    )
    held_out = [level(runs, "held_out", "end") for runs in (ours, grpo)]
    assert f"they end at {held_out[0]} and {held_out[1]}, from {level(ours, 'held_out', 'start')}" in said


def test_the_jobs_of_the_evidence_are_jobs() -> None:
    jobs = read_jobs(DOCUMENT.parents[1] / "benchmarks" / "league" / "jobs.yaml")
    assert len(jobs) > 400 and {job.task for job in jobs} == {"mixed", "fresh", "cold_start", "lengths"}

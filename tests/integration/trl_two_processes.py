"""One of two processes that train together; started by test_trl_adapter. Prints what it found."""

import sys
from pathlib import Path

# TRL imports vLLM wherever it finds it, which would take most of this test's time twice.
sys.modules["vllm"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
from accelerate.utils import gather_object  # noqa: E402

from moments_service.adapters.clusters import NamedClusters  # noqa: E402
from moments_service.adapters.local import LocalMoments  # noqa: E402
from tests.integration.trl_policy import GENERATIONS, Recorder, Watched, build, by_content  # noqa: E402


def main(output: Path) -> None:
    recorder = Recorder(by_content)
    arguments = {"max_steps": 2, "per_device_train_batch_size": 4, "ddp_backend": "gloo", "save_strategy": "steps"}
    trainer = build(Watched, recorder, output, arguments | {"save_steps": 2}, cluster_column="topic")
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    own = LocalMoments(clusters=NamedClusters())
    for step, (prompts, completions, rewards, _) in enumerate(recorder.calls):
        # Each process scores its own completions; a group stands in one process here, and the order is by process.
        everyone = gather_object(list(zip(prompts, completions, rewards, strict=True)))
        first = [prompt for prompt, _, _ in everyone[::GENERATIONS]]
        table = np.array([reward for _, _, reward in everyone], dtype=float).reshape(-1, GENERATIONS)
        topics = [prompt.split()[0] for prompt in first]
        values = np.nan_to_num(own.advantages(step, first, table, labels=topics).values).ravel()
        own.commit(step, policy_version=step + 1)
        expected = {(prompt, text): value for (prompt, text, _), value in zip(everyone, values, strict=True)}
        for key, value in trainer.seen[step].items():
            np.testing.assert_allclose(value, expected[key], atol=1e-6)
    trainer.accelerator.wait_for_everyone()
    saved = LocalMoments.load(output / "checkpoint-2" / "bv_blend")
    for name, array in own.arrays().items():
        np.testing.assert_array_equal(saved.arrays()[name], array, err_msg=name)
    print(f"process {trainer.accelerator.process_index} agrees with the moments", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

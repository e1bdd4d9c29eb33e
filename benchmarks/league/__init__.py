"""The league: estimators side by side on small tasks, hundreds of runs an hour.

    python -m benchmarks.league plan JOBS.yaml --cache CACHE         make the tasks ready, and say how much there is to do
    python -m benchmarks.league run JOBS.yaml --cache CACHE --out DIR --workers 2 [--part 1/3]
    python -m benchmarks.league show DIR [--against grpo] [--measure held_out]

A job trains the tiny policy of a recipe in one process on one thread. The feed, the clusters, the moments, the estimators, the loss,
its aggregation, the optimiser and its schedule are the product's; sampling and the forward pass are the league's own, since a
prompt is read once for both and there is nothing to send (`policy`, `sampling`, `learning`). What a policy can do is not sampled
but worked out: the probability of each gold answer, and from it pass@k.

A jobs file is a YAML list of mappings with the fields of `jobs.Job`; a list of values stands for one job each:

    - {task: fresh, estimator: [grpo, rloo, "bv_blend:safe", oracle], group_size: [2, 4, 8], seed: [0, 1, 2, 3, 4]}

`plan` needs all that a run needs. `run` needs torch, numpy, pydantic, pyyaml, safetensors and the cache: it can go on another
machine, split into parts. DIR/results*.jsonl holds a line for each job, with the job in it. A start skips what has a result, so a
run that was killed goes on, and one that grew does what is new. `frozen` measures estimators on policies that do not move.
"""

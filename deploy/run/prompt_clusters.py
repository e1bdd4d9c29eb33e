"""The clusters of a saved run that prompts fall into."""

import logging
from collections.abc import Sequence

from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.run.prompt_set import prompt_set
from deploy.rundir.layout import RunDirectory
from deploy.rundir.saved_moments import newest_snapshot, read_saved
from moments_service.progress import Progress, silent

log = logging.getLogger(__name__)


def clusters_of_run(
    directory: RunDirectory, config: RunConfig, prompts: Sequence[Prompt], progress: Progress = silent
) -> dict[str, int]:
    """Cluster of each prompt by its id, as of the newest moments that the run saved; empty before the first.

    Prompts that the run never saw belong to the nearest cluster, or to that of their label; empty, with a warning, where a label is
    unknown. config: whose encoder made the clusters.
    """
    if newest_snapshot(directory) is None:
        return {}
    clusters = read_saved(directory.path).clusters
    try:
        assigned = clusters.assign_prompts(prompt_set(config, prompts, progress))
    except ValueError as error:
        log.warning("%s: nothing is said by cluster: %s", directory.path, error)
        return {}
    return {prompt.prompt_id: int(cluster) for prompt, cluster in zip(prompts, assigned, strict=True)}

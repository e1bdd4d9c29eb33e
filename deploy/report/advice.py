"""What `bvblend advise` prints, and the few lines of it at the end of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_moments_config
from deploy.report.progress import EMBEDDING, progress
from deploy.report.visible import one_line
from deploy.rundir.find import load_run_config
from deploy.rundir.layout import RunDirectory
from moments_service.ledger import LedgerDamagedError
from moments_service.offline.advice import Advice, advise
from moments_service.offline.logged_rewards import LoggedRewards
from moments_service.offline.logs import read_log
from moments_service.offline.replay import with_clusters
from moments_service.offline.signal_table import SignalTable
from moments_service.offline.variance_components import Estimate

MOST_GROUPS = 100_000
"""Of a run: its last ones."""
AT_THE_END = 10_000
"""The same at the end of a run, when nobody asked."""
CHAINS_AT_THE_END = 4


def advice_of(
    path: Path, overrides: Sequence[str], seed: int, console: Console, reward: Mapping[str, float] | None = None
) -> Advice:
    """Of a run directory or a log. Raises ConfigError, in one sentence, for what is neither or says too little.

    console: where the progress is shown.    reward: weights of the log's columns, as `read_log` takes them.
    """
    directory = RunDirectory(path)
    try:
        if path.is_dir() and directory.config.exists():
            config = load_run_config(directory, [_whole_key(override) for override in overrides]).moments
            return advise(LoggedRewards.of_ledger(directory.moments, MOST_GROUPS), config, seed)
        base = load_moments_config(overrides)
        with progress(console, EMBEDDING) as advance:
            groups = with_clusters(read_log(path, reward).groups, base, seed, advance)
        return advise(LoggedRewards.of(groups), base, seed)
    except FileNotFoundError:
        what = "no group is in the ledger of that run yet" if path.is_dir() else "no log there"
        raise ConfigError(f"{path}: {what}") from None
    except (ValueError, LedgerDamagedError) as error:
        raise ConfigError(str(error)) from None


def advice_at_the_end(directory: RunDirectory, config: RunConfig) -> dict[str, Any] | None:
    """A quick look at the group size of the run alone, for its summary; None where the ledger says too little."""
    try:
        log = LoggedRewards.of_ledger(directory.moments, AT_THE_END)
        return advise(log, config.moments, config.seed, sizes=(), chains=CHAINS_AT_THE_END).as_json()
    except (ValueError, LedgerDamagedError, OSError):
        return None


def advice_sentences(advice: dict[str, Any] | None) -> list[str]:
    """What the end of a run says of it. advice: as JSON."""
    if advice is None:
        return []
    rho = advice["rho"]["value"]
    alike = "" if rho is None or advice["log"]["clusters"] < 2 else f"Prompts of one cluster differ by rho {rho:.2f}. "
    return [alike + " ".join(advice["reasons"])]


def shown_advice(advice: Advice, name: str) -> RenderableType:
    """One screen: what the log holds, what varies, the table, the advice."""
    parts: list[RenderableType] = [Text(line) for line in (_contents(advice, name), *_components(advice))]
    if advice.table is not None:
        parts += [Text(), _table(advice.table, advice.log.group_size), Text()]
    if advice.estimator is not None:
        own = advice.log.group_size
        instead = "" if own == advice.group_size else f" With groups of {own}: {advice.estimator_at_own_size}."
        text = f"Advice: {advice.estimator} with groups of {advice.group_size}.{instead}"
        parts.append(Text(text, style="bold green"))
    return Group(*parts, *(Text(f"· {reason}") for reason in advice.reasons))


def _contents(advice: Advice, name: str) -> str:
    log = advice.log
    prompts = "" if log.prompts is None else f"{log.prompts:,} prompts, "
    drift = log.drift * max(log.steps - 1, 0)
    uniform = "" if log.uniform != log.uniform else f"; in {log.uniform:.0%} of the groups all rewards are equal"
    return (
        f"{one_line(name)}: {log.groups:,} groups of {log.group_size} in {log.steps:,} steps, {log.completions:,} rewards, "
        f"{prompts}{log.clusters} cluster{'s' if log.clusters > 1 else ''}. Mean reward {log.mean_reward:.3g}, "
        f"{drift:+.2g} from start to end{uniform}."
    )


def _components(advice: Advice) -> list[str]:
    """The variance components in words."""
    lines = [f"Rewards of one prompt vary by {_of(advice.within)} (variance)."]
    if advice.rho.margin == advice.rho.margin:
        alike = advice.rho.value
        words = "are much alike" if alike < 0.1 else "differ somewhat" if alike < 0.3 else "differ"
        worst = max(advice.rho_by_cluster)
        by_cluster = f"; by cluster {min(advice.rho_by_cluster):.2f} to {worst:.2f}" if advice.log.clusters > 1 else ""
        lines.append(
            f"Prompts of one cluster {words}: by {_of(advice.between)}, rho {_of(advice.rho, '.2f')}{by_cluster}."
        )
    return lines


def _table(table: SignalTable, own: int) -> Table:
    shown = Table(
        title="Effective signal to expect: share of what a perfect baseline has, with 95 % intervals",
        caption="same number of completions a step; history mature; fresh prompts, or the log's again where it repeats them",
        title_style="bold",
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("estimator")
    for size in table.sizes:
        shown.add_column(f"G = {size}" + (" (log)" if size == own else ""), justify="right")
    best = {size: table.best(size) for size in table.sizes}
    for name in table.estimators:
        cells = [
            Text(_share(table.of(name, size)), style="bold green" if best[size] == name else "") for size in table.sizes
        ]
        shown.add_row(name, *cells)
    return shown


def _of(estimate: Estimate, form: str = ".2g") -> str:
    return f"{estimate.value:{form}} ± {estimate.margin:{form}}"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} ± {100 * estimate.margin:.0f}"


def _whole_key(override: str) -> str:
    """Of a run a key may be written as for a log, without `moments.`."""
    section = override.partition(".")[0]
    return f"moments.{override}" if section in ("estimator", "clusters", "health") else override

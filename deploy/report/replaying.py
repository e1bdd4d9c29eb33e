"""What `bvblend replay` prints."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.config.recipe import ConfigError, load_moments_config
from deploy.report.progress import EMBEDDING, progress
from moments_service.config import MomentsConfig
from moments_service.durable import strict_json
from moments_service.estimators.base import MissingFieldError
from moments_service.estimators.naming import configured
from moments_service.offline.logs import LoggedGroup, read_log
from moments_service.offline.replay import ReplaySummary, estimator_label, replay, with_clusters
from moments_service.progress import silent

logger = logging.getLogger(__name__)


def reward_weights(text: str) -> dict[str, float]:
    """`accuracy=1,format=0.5`, or `accuracy,format` for their sum. Raises ConfigError."""
    weights = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ConfigError(f"--reward {part.strip()}: {weight!r} is no number; write COLUMN=WEIGHT") from None
    return weights


def replay_file(
    path: Path,
    estimators: Sequence[str],
    overrides: Sequence[str],
    seed: int,
    console: Console,
    reward: Mapping[str, float] | None = None,
) -> Table:
    """Print one JSON line a group and estimator on stdout; return the summary. Raises ConfigError for a bad log or name.

    console: where the progress is shown; reward: weights of the log's columns, as `read_log` takes them.
    """
    base = load_moments_config(overrides)
    try:
        configs = [configured(base, spec) for spec in estimators]
        log = read_log(path, reward)
        with progress(console, EMBEDDING) as advance:
            groups = with_clusters(log.groups, base, seed, advance)
    except FileNotFoundError:
        raise ConfigError(f"no log at {path}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    known = [reward for group in groups for reward in group.rewards if reward is not None]
    for config in configs:
        if known and (caution := config.estimator.caution(min(known), max(known))) is not None:
            logger.warning("%s", caution)
    table = Table(title=f"{path.name}: {len(groups)} groups", title_style="bold")
    table.add_column("estimator")
    for name in ("effective signal", "with advantage", "GRPO gives none", "mean |A|"):
        table.add_column(name, justify="right")
    for config in configs:
        summary = ReplaySummary()
        what = f"groups under {estimator_label(config)}"
        # Rows that run over the screen say by themselves how far it is.
        with nullcontext(silent) if sys.stdout.isatty() else progress(console, what) as advance:
            for done, row in enumerate(_replayed(groups, config, summary), 1):
                sys.stdout.write(strict_json(row, ascii_only=True) + "\n")
                if done % 100 == 0:
                    advance(done, len(groups))
        table.add_row(
            estimator_label(config),
            f"{summary.effective_signal:.3f}",
            f"{summary.signal_ratio:.1%}",
            str(summary.rescued),
            f"{summary.mean_magnitude:.3f}",
        )
    sys.stdout.flush()
    about = [f"reward: {log.reward}"] if log.reward else []
    about += [f"{log.repeated} groups stand there twice and count once"] if log.repeated else []
    table.caption, table.caption_justify = "; ".join(about) or None, "left"
    return table


def _replayed(groups: Sequence[LoggedGroup], config: MomentsConfig, summary: ReplaySummary) -> Iterator[dict[str, Any]]:
    try:
        yield from replay(groups, config, summary)
    except MissingFieldError as error:
        raise ConfigError(f"{error}; a log of rewards does not say it") from None

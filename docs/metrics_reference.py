"""The table of docs/metrics.md, made of the metrics: `python -m docs.metrics_reference` prints it."""

from deploy.watching.metric_table import EXPORTED_PREFIX, METRICS


def reference() -> str:
    """The whole table."""
    rows = ["| metric | labels | unit | |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in ("run", metric.label) if label)
        rows.append(f"| `{EXPORTED_PREFIX}{metric.name}` | {labels} | {metric.unit} | {metric.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(reference(), end="")

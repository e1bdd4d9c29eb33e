"""Where commands print."""

from deploy.report.terminal import Terminal

console = Terminal()
errors = Terminal(stderr=True)

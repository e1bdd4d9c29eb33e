"""Where the numbers of a run go besides its own files: Ray's metrics, and trackers."""

"""Scripts that measure what the project says of itself. Run one as `python -m benchmarks.NAME`."""

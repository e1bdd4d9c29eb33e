"""What unit tests share."""

from tests.gloo_ranks import on_two_ranks, rank_processes

__all__ = ["on_two_ranks", "rank_processes"]

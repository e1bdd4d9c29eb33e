"""The rollout engines, behind the `Engine` protocol."""

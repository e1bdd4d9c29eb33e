"""Rollout: a prompt becomes a scored group."""

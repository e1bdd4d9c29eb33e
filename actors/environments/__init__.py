"""Environments: what a policy talks to in an episode."""

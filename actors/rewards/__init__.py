"""Rewards: verifiers run where they can be killed."""

"""Evaluation: what a policy can do, with how sure that is."""

"""Weights: what travels from the learner to the engines."""

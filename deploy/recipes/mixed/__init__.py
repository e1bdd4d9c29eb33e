"""Micro-skills on words in known shares of difficulty: the policy that the recipe trains, and what makes it."""

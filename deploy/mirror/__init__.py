"""A copy of a run that grows elsewhere."""

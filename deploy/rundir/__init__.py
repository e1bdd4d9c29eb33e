"""A run directory: what lies where, how it is written, how it is read."""

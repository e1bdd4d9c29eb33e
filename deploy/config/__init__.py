"""The configuration of a run: its models, recipes and overrides."""

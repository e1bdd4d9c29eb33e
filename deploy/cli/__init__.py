"""The `bvblend` command."""

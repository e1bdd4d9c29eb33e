"""The policy as a torch module."""

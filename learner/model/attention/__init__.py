"""Attention along the paths of prefix tries, as an attention function of transformers."""

"""From a batch to tokens on ranks."""

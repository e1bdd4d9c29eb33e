"""What is minimised, and what is said about it."""

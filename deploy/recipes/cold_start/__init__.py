"""The policy that the cold-start recipe trains, and the script that makes it."""

"""What the moments service is told and what it answers."""

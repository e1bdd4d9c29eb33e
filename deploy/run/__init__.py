"""What a run is made of while it goes on: its work, its parts, its steps, its ending."""

"""What people read about runs: tables, summaries, comparisons, explanations."""

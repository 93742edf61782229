"""decam (under construction)."""

"""generic (under construction)."""

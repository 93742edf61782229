"""The `seechange` command: `main.py` assembles it from the modules beside it."""

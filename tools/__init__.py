"""Commands around a run: `python -m tools.NAME`."""

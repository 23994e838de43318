"""Things done around a run; each is `python -m tools.NAME`."""

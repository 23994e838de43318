"""Readings of a trained flow, one a file, for `tools/latents.py`."""

from .. import no_command

no_command(__name__)

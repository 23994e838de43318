"""Builds the parts of an export, for `tools/export.py`."""

from .. import no_command

no_command(__name__)

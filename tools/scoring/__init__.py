"""Compares samples with real images, for `tools/fid.py`."""

from .. import no_command

no_command(__name__)

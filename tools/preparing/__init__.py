"""Writes data sets as array_record, for `tools/prepare_data.py`."""

from .. import no_command

no_command(__name__)

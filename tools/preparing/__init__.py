"""Writes data sets as array_record, for `tools/prepare_data.py`."""

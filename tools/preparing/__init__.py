"""Writes data sets as array_record."""

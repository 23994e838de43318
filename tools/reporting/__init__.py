"""The rooms of `tools.report`: files and runs, curves, charts, pictures, measurements, tables, and the page."""

"""Times programs, reads what XLA compiled, and writes tables of measurements."""

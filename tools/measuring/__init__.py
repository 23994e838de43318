"""Times programs, reads what XLA compiled, and writes tables of measurements."""

from .. import no_command

no_command(__name__)

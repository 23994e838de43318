"""Images to one file with a flow, and back without a loss: as many bits as the flow promises."""

from jet_jax.codec.bijections import OutOfRange
from jet_jax.codec.coder import Written, check_flow, check_header, read, write
from jet_jax.codec.file import LARGEST_BATCH, Reader, Unreadable
from jet_jax.codec.integer_flow import IntegerFlow
from jet_jax.codec.trained import coded_size, flow_of_run, problem_of

__all__ = [
  "LARGEST_BATCH", "IntegerFlow", "OutOfRange", "Reader", "Unreadable", "Written", "check_flow", "check_header",
  "coded_size", "flow_of_run", "problem_of", "read", "write",
]  # fmt: skip

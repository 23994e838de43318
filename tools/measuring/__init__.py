"""Times programs and reads what XLA made of them."""

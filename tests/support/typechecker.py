"""Checks annotations at run time, for jaxtyping's import hook."""

import beartype

# An int stands for a float, as PEP 484 has it.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

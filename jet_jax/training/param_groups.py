"""Learning-rate factors for groups of parameters, chosen by their paths; a factor of 0 freezes a group."""

import math
import re
from collections.abc import Sequence

import jax
import optax


def scale_groups(rules: Sequence[str]) -> optax.GradientTransformation:
  """Multiplies the updates of groups of parameters; a group of factor 0 keeps its bits.

  The clipped norm includes the gradients of frozen parameters, and these have moments too: freezing saves no memory.

  Args:
    rules: "PATTERN=FACTOR" each, as "block0=0.1": a regular expression, searched in the path of a parameter
      (couplings/vit/block0_mlp/up/kernel), and a factor of at least 0. The first rule that matches applies.

  Raises:
    ValueError: a rule that cannot be read; at `init`, one that matches no parameter.
  """
  factors = [_parse(rule) for rule in rules]

  def rule_of(name: str) -> int | None:
    return next((i for i, (pattern, _) in enumerate(factors) if pattern.search(name)), None)

  def init(params):
    names = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    used = {rule_of(name) for name in names}
    for i, rule in enumerate(rules):
      if i not in used:
        raise ValueError(f"part_rates: {rule!r} matches no parameter; drop it, or match one of {', '.join(names)}")
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params

    def scale(path, x):
      rule = rule_of(path_of(path))
      return x if rule is None else x * factors[rule][1]

    return jax.tree.map_with_path(scale, updates), state

  return optax.GradientTransformation(init, update)


def path_of(path) -> str:
  """The path of a parameter in its tree as text: "couplings/vit/block0_mlp/up/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _parse(rule: str) -> tuple[re.Pattern, float]:
  try:
    pattern, _, factor = rule.rpartition("=")
    compiled, value = re.compile(pattern), float(factor)
  except (AttributeError, ValueError, re.error) as error:
    raise ValueError(f"part_rates={rule!r}: {error}; write 'PATTERN=FACTOR', as 'block0=0.1'") from error
  if not pattern or not 0 <= value < math.inf:
    raise ValueError(f"part_rates={rule!r} must be 'PATTERN=FACTOR' with a factor of at least 0, as 'block0=0.1'")
  return compiled, value

"""Rates by part: the updates of some parameters made smaller or larger, or nothing at all, which freezes them."""

import math
import re
from collections.abc import Sequence

import jax
import optax


def scale_parts(rules: Sequence[str]) -> optax.GradientTransformation:
  """Multiplies the updates of some parameters; those of factor 0 stay as they are in every bit.

  All gradients count in the norm that is clipped, and frozen parameters have moments too: nothing is spared.

  Args:
    rules: "PATTERN=FACTOR" each, as "block0=0.1": a regular expression that is looked for in the path of a parameter
      (couplings/vit/block0_mlp/up/kernel), and a number from 0 on. A parameter goes by the first that is found.

  Raises:
    ValueError: a rule that cannot be read; at `init`, one that no parameter goes by.
  """
  factors = [_parse(rule) for rule in rules]

  def rule_of(name: str) -> int | None:
    return next((i for i, (pattern, _) in enumerate(factors) if pattern.search(name)), None)

  def init(params):
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    used = {rule_of(name) for name in names}
    for i, rule in enumerate(rules):
      if i not in used:
        raise ValueError(f"part_rates: no parameter goes by {rule!r}; drop it, or match one of {', '.join(names)}")
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params

    def scale(path, x):
      rule = rule_of(_name(path))
      return x if rule is None else x * factors[rule][1]

    return jax.tree.map_with_path(scale, updates), state

  return optax.GradientTransformation(init, update)


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _parse(rule: str) -> tuple[re.Pattern, float]:
  try:
    pattern, _, factor = rule.rpartition("=")
    compiled, value = re.compile(pattern), float(factor)
  except (AttributeError, ValueError, re.error) as error:
    raise ValueError(f"part_rates={rule!r}: {error}; write 'PATTERN=FACTOR', as 'block0=0.1'") from error
  if not pattern or not 0 <= value < math.inf:
    raise ValueError(f"part_rates={rule!r} must be 'PATTERN=FACTOR' with a factor from 0 on, as 'block0=0.1'")
  return compiled, value

"""Running under a mesh with explicit axes, as `jax.make_mesh` makes by default.

JAX then tracks the sharding of every array by its type, and refuses a reshape or a product whose result it cannot
tell. Inside of a flow the compiler decides instead, as it does under a mesh with automatic axes.
"""

import functools

import flax.linen as nn
import jax
from jax.sharding import AxisType, PartitionSpec


def with_automatic_axes(method):
  """Decorates `method(module, x, *arguments) -> (y, logdet)` of a flax module, so that it runs under any mesh.

  Under a mesh with explicit axes, x, other arrays and the module's variables enter as arrays of automatic axes. y
  leaves with the sharding of x, logdet with that of its first axis, new variables without one. Under any other mesh
  nothing changes.

  Args:
    method: x and y of one shape, images or examples first; logdet (B,).
  """

  @functools.wraps(method)
  def decorated(module, x, *arguments, **named):
    explicit = jax.sharding.get_abstract_mesh()
    names = [
      name for name, kind in zip(explicit.axis_names, explicit.axis_types, strict=True) if kind == AxisType.Explicit
    ]
    if not names:
      return method(module, x, *arguments, **named)
    automatic = explicit.update_axis_types(dict.fromkeys(names, AxisType.Auto))
    others = jax.tree.map(lambda one: _enter(automatic, one) if isinstance(one, jax.Array) else one, (arguments, named))

    def body(module, x):
      arguments, named = others
      module.scope.rngs = _enter(automatic, module.scope.rngs)  # this scope is the body's own
      with jax.sharding.use_abstract_mesh(automatic):
        return method(module, jax.sharding.reshard(x, PartitionSpec()), *arguments, **named)

    lifted = nn.map_variables(
      body,
      True,  # every collection
      trans_in_fn=functools.partial(_enter, automatic),
      trans_out_fn=functools.partial(_enter, explicit),
      init=module.is_initializing(),
      mutable=True,
    )
    y, logdet = lifted(module, x)
    spec = jax.typeof(x).sharding.spec
    return jax.sharding.reshard(y, spec), jax.sharding.reshard(logdet, PartitionSpec(spec[0]))

  return decorated


def _enter(mesh, tree):
  """Moves arrays to the types of another mesh, without a sharding of their own: automatic axes keep theirs."""
  with jax.sharding.use_abstract_mesh(mesh):
    return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), tree)

"""For each layer of a flow, the map of integers that stands for it.

A form has `forward(x, at)` and `inverse(y, at)`, on int64 (B, tokens, channels) in cells of the grid `at.step`. The two
undo each other exactly, stack included. A layer without a form is refused by name: `form_of`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jet_jax.codec.bijections import Monotone, Orthogonal, Rounding, Triangular, as_fraction, shrink, stretch
from jet_jax.codec.bitstack import BitStack
from jet_jax.flow import (
  ActNorm,
  Additive,
  Affine,
  Coupling,
  FactorOut,
  Front,
  InvertibleDense,
  Layer,
  LogisticMixture,
  MaskedCoupling,
  Reorder,
  Stack,
)
from jet_jax.flow.coupling import predict
from jet_jax.flow.elementwise import scale_and_log
from jet_jax.flow.front import PLACES, cosines
from jet_jax.flow.splits import halves

INTERVAL = 2.0**-7  # of the straight lines of a mixture, on the real line; its narrowest component is 0.05 wide
CURVED = 16.0  # on the real line; beyond it a mixture goes on as a straight line


@dataclasses.dataclass(frozen=True)
class At:
  """A pass through the layers, besides the state.

  Attributes:
    stack: changed in place.
    step: of the grid, on the real line.
    rounding: of what is predicted.
  """

  stack: BitStack
  step: float
  rounding: Rounding

  def real(self, x: np.ndarray) -> np.ndarray:
    """The middles of cells, float64."""
    return (x + 0.5) * self.step

  def cells(self, x: Any) -> np.ndarray:
    """Real shifts in cells, rounded to int64."""
    return self.rounding(np.asarray(x, np.float64) / self.step, 1 / self.step)


class Form(Protocol):
  """The map of integers for a layer."""

  def forward(self, x: np.ndarray, at: At) -> np.ndarray: ...

  def inverse(self, y: np.ndarray, at: At) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Networks:
  """The means to run the networks inside the layers.

  Attributes:
    compiled: compiles `(params, number, *arrays)`, and runs it on any number of images, see `IntegerFlow.compiled`.
    features: that the predictors read besides the state, for one image, (1, tokens or 1, features); or None.
    coefficients: of all linear maps; each form adds its own.
  """

  compiled: Callable[[Callable], Callable]
  features: Any
  coefficients: list[np.ndarray] = dataclasses.field(default_factory=list)


def form_of(layer: Layer, params: Mapping[str, Any], networks: Networks) -> Form:
  """The form of a layer.

  Args:
    layer: as `Jet` makes it, not bound.
    params: the parameters of the layers beside it, by their names.
    networks: how predictors are run.

  Raises:
    ValueError: there is none.
  """
  make = FORMS.get(type(layer))
  if make is None:
    raise ValueError(f"the codec has no integer form of the layer {type(layer).__name__}; it codes flows of {_names()}")
  return make(layer, params, networks)


def _names() -> str:
  return ", ".join(sorted(kind.__name__ for kind in FORMS))


class InOrder:
  """Several forms, one after another."""

  def __init__(self, forms: Sequence[Form]):
    self.forms = forms

  def forward(self, x, at):
    """Runs all."""
    for form in self.forms:
      x = form.forward(x, at)
    return x

  def inverse(self, y, at):
    """Runs the inverses of all, the last one first."""
    for form in reversed(self.forms):
      y = form.inverse(y, at)
    return y


class ReorderForm:
  """Of `Reorder`: moves numbers."""

  def __init__(self, layer, params, networks):
    self.tokens, self.channels = np.asarray(layer.tokens), np.asarray(layer.channels)

  def forward(self, x, at):
    """Reorders."""
    return x[:, self.tokens][:, :, self.channels]

  def inverse(self, y, at):
    """Puts all back."""
    return y[:, np.argsort(self.tokens)][:, :, np.argsort(self.channels)]


class FactorOutForm:
  """Of `FactorOut`: the second half of the channels stays."""

  def __init__(self, layer, params, networks):
    self.inner = InOrder([form_of(inner, params, networks) for inner in layer.layers])
    self.sides = {"h": layer.grid[0] // 2, "w": layer.grid[1] // 2, "hs": 2, "ws": 2}

  def forward(self, x, at):
    """Squeezes the first half, and runs the layers."""
    return self._on_half(x, at, self.inner.forward)

  def inverse(self, y, at):
    """Runs the layers backwards."""
    return self._on_half(y, at, self.inner.inverse)

  def _on_half(self, x, at, run):
    kept, factored = np.split(x, 2, axis=-1)
    kept = run(rearrange(kept, "b (h hs w ws) k -> b (h w) (hs ws k)", **self.sides), at)
    kept = rearrange(kept, "b (h w) (hs ws k) -> b (h hs w ws) k", **self.sides)
    return np.concatenate([kept, factored], axis=-1)


class Scaled:
  """Multiplies numbers by constant scales.

  Args:
    scale: positive, of a shape that broadcasts to that of the state.
  """

  def __init__(self, scale: np.ndarray):
    self.scale = scale

  def forward(self, x, at):
    """Multiplies."""
    return stretch(at.stack, x, *as_fraction(self.scale, at.rounding))

  def inverse(self, y, at):
    """Divides."""
    return shrink(at.stack, y, *as_fraction(self.scale, at.rounding))


class ActNormForm:
  """Of `ActNorm`: a shift and a scale for each channel."""

  def __init__(self, layer, params, networks):
    own = params[layer.name]
    self.bias, self.scaled = _float64(own["bias"]), Scaled(np.exp(_float64(own["log_scale"])))

  def forward(self, x, at):
    """Shifts, then scales."""
    return self.scaled.forward(x + at.cells(self.bias), at)

  def inverse(self, y, at):
    """Undoes both."""
    return self.scaled.inverse(y, at) - at.cells(self.bias)


class DenseForm:
  """Of `InvertibleDense`: W = L D V, where L and V have ones on their diagonals."""

  def __init__(self, layer, params, networks):
    own = {name: _float64(value) for name, value in params[layer.name].items()}
    scale = np.exp(own["log_diagonal"])
    self.lower, self.scaled = Triangular(np.tril(own["lower"], -1)), Scaled(scale)
    self.upper = Triangular(np.triu(own["upper"], 1) / scale[:, None])
    networks.coefficients.extend([self.lower.coefficients, self.upper.coefficients])

  def forward(self, x, at):
    """Multiplies by V, D and L."""
    return self.lower.forward(self.scaled.forward(self.upper.forward(x), at))

  def inverse(self, y, at):
    """Undoes all three."""
    return self.upper.inverse(self.scaled.inverse(self.lower.inverse(y), at))


class FrontForm:
  """Of `Front`: y = T^-1 Q (scale * Q^T T (x - mean)), each factor by itself."""

  def __init__(self, layer: Front, params, networks):
    constants = {name: _float64(value) for name, value in layer.constants.items()}
    self.mean, self.layer = constants["mean"], layer
    self.rotation, self.scaled = Orthogonal(constants["rotation"]), Scaled(np.exp(constants["log_scale"]))
    sides = [side * layer.patch_size for side in layer.grid] if layer.kind == "stationary" else []
    self.axes = [(axis, Orthogonal(cosines(side)[None])) for axis, side in enumerate(sides, 1)]
    self.sides = {"h": layer.grid[0], "w": layer.grid[1], "hp": layer.patch_size, "wp": layer.patch_size}
    networks.coefficients.extend([self.rotation.coefficients, *(cosine.coefficients for _, cosine in self.axes)])

  def forward(self, x, at):
    """Whitens."""
    v = self._vectors(x - at.cells(self.mean))
    return self._tokens(self.rotation.forward(self.scaled.forward(self.rotation.inverse(v), at)), x.shape)

  def inverse(self, y, at):
    """Undoes `forward`."""
    v = self._vectors(y)
    v = self.rotation.forward(self.scaled.inverse(self.rotation.inverse(v), at))
    return self._tokens(v, y.shape) + at.cells(self.mean)

  def _vectors(self, x):
    if self.layer.kind != "stationary":
      return rearrange(x, PLACES[self.layer.kind])
    x = rearrange(x, "b (h w) (hp wp c) -> b (h hp) (w wp) c", **self.sides)
    for axis, cosine in self.axes:
      x = _along(cosine.forward, x, axis)
    return rearrange(x, "b u v c -> b (u v) c")

  def _tokens(self, vectors, shape):
    if self.layer.kind != "stationary":
      return vectors.reshape(shape)
    x = rearrange(vectors, "b (u v) c -> b u v c", u=self.sides["h"] * self.sides["hp"])
    for axis, cosine in reversed(self.axes):
      x = _along(cosine.inverse, x, axis)
    return rearrange(x, "b (h hp) (w wp) c -> b (h w) (hp wp c)", **self.sides)


def _float64(x: Any) -> np.ndarray:
  return np.asarray(x, np.float64)


def _along(multiply: Callable, x: np.ndarray, axis: int) -> np.ndarray:
  """Applies an orthonormal map along an axis."""
  moved = np.moveaxis(x, axis, -1)
  return np.moveaxis(multiply(moved.reshape(len(x), -1, moved.shape[-1])).reshape(moved.shape), -1, axis)


class StackForm:
  """Of `Stack`: the forms of its repeats, whose predictors share a program."""

  def __init__(self, layer: Stack, params, networks):
    own, periods = params[layer.name], []
    programs = {}  # by name, of the first repeat
    for number in range(layer.repeats):
      constants = jax.tree.map(lambda leaf, number=number: leaf[number], layer.constants)
      forms = []
      for inner in layer.period(constants):
        name = inner.name or ""
        if isinstance(inner, Coupling | MaskedCoupling):
          if name not in programs:
            programs[name] = _Predictions(inner, own, networks)
          forms.append(CouplingForm(inner, programs[name], number))
        else:
          sliced = jax.tree.map(lambda leaf, number=number: leaf[number], own.get(name, {}))
          forms.append(form_of(inner, {name: sliced}, networks))
      periods += forms
    self.inner = InOrder(periods)

  def forward(self, x, at):
    """Runs all repeats."""
    return self.inner.forward(x, at)

  def inverse(self, y, at):
    """Runs all repeats backwards."""
    return self.inner.inverse(y, at)


class _Predictions:
  """Programs of the couplings of a stack: what the transform of a coupling needs, for some images.

  A coupling is told by its number.
  """

  def __init__(self, coupling: Coupling | MaskedCoupling, params, networks: Networks):
    kind = type(coupling.elementwise)
    if kind not in TRANSFORMS:
      raise ValueError(f"the codec has no integer form of the transform {kind.__name__}; it has those of Jet")
    self.transform, predictor = TRANSFORMS[kind](coupling.elementwise, networks), coupling.predictor
    # What stands where a number is hidden, for each repeat.
    self.hidden = _float64(params["coupling"]["hidden"] if isinstance(coupling, MaskedCoupling) else ())

    def predicted(params, number, read):
      own = {"params": jax.tree.map(lambda leaf: leaf[number], params)}
      features = networks.features
      if features is not None:
        features = jnp.broadcast_to(jnp.asarray(features, read.dtype), (len(read), *features.shape[1:]))
      return self.transform.parameters(predict(predictor.bind(own), read, features, coupling.elementwise.predicted))

    self._program = networks.compiled(predicted)
    self._params = jax.device_put(params[predictor.name])

  def __call__(self, number: int, read: np.ndarray) -> list[np.ndarray]:
    """Predicts from the middles of cells: arrays of the shape of `read`."""
    return self._program(self._params, np.int32(number), read)


class CouplingForm:
  """Of `Coupling` and `MaskedCoupling`: some numbers are read, and the others transformed.

  Args:
    coupling: one of a stack.
    predictions: of that stack.
    number: its place in it.
  """

  def __init__(self, coupling: Coupling | MaskedCoupling, predictions: _Predictions, number: int):
    self.coupling, self.predictions, self.number = coupling, predictions, number

  def forward(self, x, at):
    """Transforms."""
    return self._transformed(x, at, self.predictions.transform.forward)

  def inverse(self, y, at):
    """Undoes that; what is read has not changed."""
    return self._transformed(y, at, self.predictions.transform.inverse)

  def _transformed(self, x, at, run):
    count, tokens, channels = x.shape
    flat = x.reshape(count, -1).copy()
    if isinstance(self.coupling, MaskedCoupling):
      known = np.asarray(self.coupling.known)
      read = np.where(known, at.real(x), self.predictions.hidden[self.number])
      of_predicted = places = np.flatnonzero(~known.ravel())
    else:
      numbers = jnp.arange(tokens * channels, dtype=jnp.int32).reshape(1, tokens, channels)
      first, places = (np.asarray(half).ravel() for half in halves(numbers, self.coupling.spatial))
      read = at.real(flat[:, first]).reshape(count, tokens, channels // 2)
      of_predicted = np.arange(len(places))
    predicted = self.predictions(self.number, read)
    flat[:, places] = run(flat[:, places], [each.reshape(count, -1)[:, of_predicted] for each in predicted], at)
    return flat.reshape(x.shape)


class AdditiveForm:
  """Of `Additive`."""

  def __init__(self, elementwise: Additive, networks: Networks):
    pass

  def parameters(self, predicted):
    """The bias."""
    return predicted

  def forward(self, x, predicted, at):
    """Adds the bias."""
    return x + at.cells(predicted[0])

  def inverse(self, y, predicted, at):
    """Takes it away."""
    return y - at.cells(predicted[0])


class AffineForm:
  """Of `Affine`."""

  def __init__(self, elementwise: Affine, networks: Networks):
    self.elementwise = elementwise

  def parameters(self, predicted):
    """Bias and scale."""
    bias, raw_scale = predicted
    return bias, scale_and_log(raw_scale, self.elementwise.bound, self.elementwise.floor)[0]

  def forward(self, x, predicted, at):
    """Adds the bias, and stretches."""
    bias, scale = predicted
    return stretch(at.stack, x + at.cells(bias), *as_fraction(scale, at.rounding))

  def inverse(self, y, predicted, at):
    """Undoes both."""
    bias, scale = predicted
    return shrink(at.stack, y, *as_fraction(scale, at.rounding)) - at.cells(bias)


class MixtureForm:
  """Of `LogisticMixture`: its quantile by straight lines, then the affine map."""

  def __init__(self, elementwise: LogisticMixture, networks: Networks):
    self.affine = AffineForm(elementwise.affine, networks)
    self._quantile = networks.compiled(lambda _, __, x, *predicted: (elementwise.quantile(x, predicted),))

  def parameters(self, predicted):
    """Bias and scale of the affine map, then what is predicted for the mixture."""
    return *self.affine.parameters(predicted[:2]), *predicted[2:]

  def forward(self, x, predicted, at):
    """Takes the quantile, then the affine map."""
    return self.affine.forward(self._monotone(predicted[2:], at).forward(at.stack, x), predicted[:2], at)

  def inverse(self, y, predicted, at):
    """Undoes both."""
    return self._monotone(predicted[2:], at).inverse(at.stack, self.affine.inverse(y, predicted[:2], at))

  def _monotone(self, predicted, at: At) -> Monotone:
    shift = max(6, round(math.log2(INTERVAL / at.step)))
    width = at.step * 2.0**shift
    value = lambda index: _float64(self._quantile(None, None, index * width, *predicted)[0]) / at.step
    return Monotone(value, shift, math.ceil(CURVED / width), at.rounding, 1 / at.step)


# A form of a layer is made of the layer, the parameters beside it and `Networks`. That of a transform is made of the
# transform and `Networks`; its `parameters` runs inside of a compiled program, and `forward` and `inverse` take the
# transformed numbers, int64 (B, N), and what is predicted for each, float64 or float32 (B, N).
FORMS: dict[type, Callable[..., Form]] = {
  ActNorm: ActNormForm, FactorOut: FactorOutForm, Front: FrontForm, InvertibleDense: DenseForm, Reorder: ReorderForm,
  Stack: StackForm,
}  # fmt: skip
TRANSFORMS: dict[type, Callable[..., Any]] = {Additive: AdditiveForm, Affine: AffineForm, LogisticMixture: MixtureForm}

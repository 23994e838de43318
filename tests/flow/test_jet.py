"""Jet is a bijection whose logdet is that of its Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jet_jax import likelihood
from jet_jax.flow.splits import Splits, halves
from jet_jax.jet import Jet

# Image shapes with flow settings: both kinds of split, each pattern, non-square, one token, many channels.
CASES = {
  "both kinds": ((8, 8, 2), {"couplings": 9, "kinds": ("channels", "spatial")}),
  "spatial only": ((4, 4, 1), {"couplings": 7, "kinds": ("spatial",), "patch_size": 1, "image_channels": 2}),
  "channels only": ((4, 6, 3), {"couplings": 5, "kinds": ("channels",)}),
  "wide image": ((4, 12, 3), {"kinds": ("channels", "channels", "spatial")}),
  "deep ViT": ((4, 8, 2), {"block_depth": 3, "couplings": 3, "kinds": ("spatial", "channels")}),
  "scale bound": ((4, 4, 2), {"scale_bound": 3.0}),
  "additive": ((4, 4, 2), {"coupling_transform": "additive", "layers": ("actnorm",)}),
  "mixture": (
    (4, 4, 2),
    {"coupling_transform": "mixture", "mixture_components": 3, "kinds": ("channels", "spatial"), "std": 0.1},
  ),
  # Random matrices of a larger spread would be too ill-conditioned for the tolerance below.
  "dense": ((4, 6, 3), {"layers": ("dense",), "kinds": ("channels",), "std": 0.1}),
  "masking": ((8, 8, 2), {"masking": True, "kinds": ("channels", "spatial")}),
  "CNN": ((4, 8, 2), {"predictor": "cnn", "masking": True, "kinds": ("channels", "spatial")}),
  "whole tokens of an odd size": ((4, 4, 3), {"patch_size": 1, "masking": True, "kinds": ("spatial",)}),
  "two resolutions": ((8, 8, 1), {"resolutions": 2, "kinds": ("channels", "spatial"), "couplings": 3}),
  "three resolutions of masks": ((8, 8, 1), {"resolutions": 3, "masking": True, "kinds": ("channels",), "std": 0.2}),
}
FLOAT64 = [
  "both kinds", "spatial only", "wide image", "scale bound", "additive", "mixture", "dense", "masking", "CNN",
  "whole tokens of an odd size", "two resolutions", "three resolutions of masks",
]  # fmt: skip


def run(model, variables, x, method="__call__"):
  """Compiled, which takes a fraction of the time of running operation by operation."""
  return jax.jit(lambda variables, x: model.apply(variables, x, method=method))(variables, x)


def make(tiny_flow, case, **more):
  shape, settings = CASES[case]
  settings = dict(settings)
  channels = settings.pop("image_channels", shape[2])
  shape = (*shape[:2], channels)
  return shape, *tiny_flow(shape, **settings, **more)


@pytest.mark.parametrize("case", CASES)
def test_inverse_undoes_forward_and_their_logdets_cancel(tiny_flow, case):
  shape, model, variables = make(tiny_flow, case)
  x = jax.random.uniform(jax.random.key(2), (3, *shape), minval=-1)
  z, forward_logdet = run(model, variables, x)
  back, inverse_logdet = run(model, variables, z, "inverse")
  assert z.shape == x.shape
  assert forward_logdet.shape == (3,)
  assert jnp.max(jnp.abs(z - x)) > 0.1, "random parameters must do something"
  # float32 rounding, amplified by at most 1 / (smallest scale) a coupling: 1e-4 is the promise for 64 couplings.
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(forward_logdet + inverse_logdet, 0, atol=1e-6 * x[0].size)


@pytest.mark.parametrize("case", FLOAT64)
def test_logdet_is_that_of_the_jacobian(tiny_flow, case):
  with jax.enable_x64():  # in float64 the comparison is exact to 1e-9, so that no small term can hide
    shape, model, variables = make(tiny_flow, case, dtype="float64")
    variables = jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, variables)
    x = jax.random.normal(jax.random.key(2), (1, *shape), "float64")
    for method in ("__call__", "inverse"):

      def flat(x, method=method):
        return run(model, variables, x.reshape(1, *shape), method)[0].ravel()

      _, expected = jnp.linalg.slogdet(jax.jacrev(flat)(x.ravel()))
      logdet = run(model, variables, x, method)[1][0]
      assert abs(logdet) > 0.1
      np.testing.assert_allclose(logdet, expected, atol=1e-9)


@pytest.mark.parametrize(
  "settings",
  [
    {"couplings": 7},
    {"masking": True},
    {"predictor": "cnn", "masking": True, "layers": ("dense",), "coupling_transform": "additive"},
    {"resolutions": 2},
    {"resolutions": 3, "masking": True, "kinds": ("channels",)},
  ],
  ids=str,
)
def test_a_new_flow_is_the_identity(settings):
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  basic = {"couplings": 2, "block_depth": 1, "width": 8, "heads": 2, "patch_size": 2, "kinds": ("channels", "spatial")}
  model = Jet(**basic | settings)
  z, logdet = run(model, model.init(jax.random.key(1), x), x)
  # x survives unchanged, bit for bit: a bias of 0 and a scale of 2 * sigmoid(0) = 1 are exact in float32.
  np.testing.assert_array_equal(z, x)
  # log sigmoid(0) + log 2 is 0 up to the rounding of the two logarithms.
  np.testing.assert_allclose(logdet, 0, atol=1e-7 * x[0].size)


def test_every_dimension_moves_under_the_default_kinds(tiny_flow):
  # Ten couplings are eight channel splits, each leaving half of the channels alone, and two spatial ones.
  model, variables = tiny_flow((8, 8, 3), couplings=10)
  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  z, _ = run(model, variables, x)
  assert model.kinds == Jet().kinds
  assert jnp.all(jnp.abs(z - x) > 1e-4)


@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("kind", ["channels", "spatial"])
def test_a_coupling_moves_its_second_half_and_no_other_dimension(tiny_flow, kind, masking):
  model, variables = tiny_flow((2, 4, 2), patch_size=1, couplings=1, kinds=(kind,), masking=masking)
  x = jax.random.normal(jax.random.key(0), (1, 2, 4, 2))
  split = jax.tree.map(lambda x: x[0], Splits(**variables["permutations"]))
  where = jnp.arange(16.0).reshape(1, 8, 2)[:, split.tokens][:, :, split.channels]
  for method in ("__call__", "inverse"):
    z, _ = run(model, variables, x, method)
    moved = np.flatnonzero(np.asarray(z != x).ravel())  # the others have the same bits
    np.testing.assert_array_equal(moved, np.sort(halves(where, split.spatial)[1].ravel()))


@pytest.mark.parametrize("masking", [False, True])
def test_the_half_that_the_last_coupling_reads_goes_on_to_the_next_resolution(tiny_flow, masking):
  """Else that coupling would not be the learned prior of the half that is factored out."""
  settings = {"patch_size": 1, "couplings": 1, "kinds": ("spatial",), "resolutions": 2, "masking": masking}
  model, variables = tiny_flow((4, 4, 4), **settings)
  splits = variables["permutations"]
  assert not splits["spatial"].any(), "the last coupling splits channels, whatever its kind would be"
  assert splits["spatial_1"].all()
  x = jax.random.normal(jax.random.key(0), (64,))
  jacobian = jax.jacfwd(lambda x: run(model, variables, x.reshape(1, 4, 4, 4))[0].ravel())(x)
  kept_channels = np.isin(np.arange(4), splits["channels"][0, :2])
  assert kept_channels[:2].sum() == 1, "a draw of the order that halves in place would not tell"
  is_kept = np.tile(kept_channels, 16)
  of_kept, of_factored = jacobian[is_kept], jacobian[~is_kept]
  np.testing.assert_array_equal(of_kept[:, ~is_kept], 0)  # the kept half depends on itself alone
  off_diagonal = lambda square: np.count_nonzero(square - np.diag(np.diag(square)))
  assert off_diagonal(of_kept[:, is_kept]) == 16 * 16, (
    "the next resolution transforms half of its tokens, by the others"
  )
  assert off_diagonal(of_factored[:, ~is_kept]) == 0, "each factored number is transformed by itself, once"
  assert np.count_nonzero(of_factored[:, is_kept]) == 32 * 32, "and by what is predicted from the kept half"


def test_channel_splits_alone_move_every_dimension(tiny_flow):
  # One dimension in 2**16 would stay by chance; without permutations half of them stay.
  model, variables = tiny_flow((4, 4, 3), couplings=16, kinds=("channels",))
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
  assert jnp.all(run(model, variables, x)[0] != x)


def test_the_density_of_a_one_pixel_flow_integrates_to_one(tiny_flow):
  # A draw of the parameters with which the mass lies inside of the grid; with others up to a tenth is outside.
  model, variables = tiny_flow((1, 1, 2), patch_size=1, kinds=("channels",), couplings=6, seed=0)
  side = jnp.linspace(-12, 12, 801)
  x = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 1, 1, 2)
  z, logdet = run(model, variables, x)
  density = jnp.exp((likelihood.log_prior(z) + logdet).astype(jnp.float32))
  mass = np.sum(np.asarray(density, np.float64)) * float(side[1] - side[0]) ** 2
  # The Riemann sum of a smooth density on a grid of 0.03 errs far less than 1e-3; a wrong logdet errs by 10% and more.
  np.testing.assert_allclose(mass, 1, atol=1e-3)


@pytest.mark.parametrize("attention", ["xla", "einsum"])
def test_a_flow_is_the_same_in_double_precision(attention):
  def variables_and_result():
    model = Jet(couplings=2, block_depth=1, width=8, heads=2, patch_size=2, kinds=("channels", "spatial"))
    model, x = model.clone(attention=attention), np.zeros((2, 4, 4, 2), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    return variables, jax.eval_shape(model.apply, variables, x)

  with jax.enable_x64():
    wide, wide_result = variables_and_result()
  variables, result = variables_and_result()
  assert wide_result == result
  jax.tree.map(np.testing.assert_array_equal, wide, variables)
  assert jax.tree.map(lambda x: x.dtype, wide) == jax.tree.map(lambda x: x.dtype, variables)


def test_images_of_a_batch_do_not_see_each_other(tiny_flow):
  model, variables = tiny_flow((4, 4, 3))
  x = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
  gradient = jax.grad(lambda x: jnp.sum(run(model, variables, x)[0][1] ** 2))(x)
  assert jnp.all(gradient[jnp.array([0, 2])] == 0)
  assert jnp.any(gradient[1] != 0)


@pytest.mark.parametrize("remat", ["none", "dots", "blocks"])
def test_rematerialization_changes_no_result(tiny_flow, remat):
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))

  def gradient(remat):
    model, variables = tiny_flow((4, 4, 2), remat=remat)

    def loss(params):
      z, logdet = model.apply(variables | {"params": params}, x)
      return jnp.sum(z**2) - jnp.sum(logdet)

    return jax.jit(jax.grad(loss))(variables["params"])

  # The same operations in another order of fusion: equal up to float32 rounding of sums of a few hundred terms.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient(remat), gradient("full"))


def test_a_bfloat16_predictor_keeps_the_affine_maths_in_float32(tiny_flow):
  # More couplings would amplify a flip: digits that a round trip changes last may round another way in a predictor.
  model, variables = tiny_flow((8, 8, 2), dtype="bfloat16", couplings=2)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables["params"]))
  x = jax.random.uniform(jax.random.key(2), (3, 8, 8, 2), minval=-1)
  z, logdet = run(model, variables, x)
  back, _ = run(model, variables, z, "inverse")
  assert z.dtype == logdet.dtype == jnp.float32
  assert not jnp.array_equal(z, tiny_flow((8, 8, 2), couplings=2)[0].apply(variables, x)[0]), "bfloat16 must differ"
  np.testing.assert_allclose(back, x, atol=1e-4)
  # The scale that was applied is the scale in logdet: in bfloat16 it would differ by 2**-9 in each of 16 terms.
  small, few = tiny_flow((4, 4, 2), dtype="bfloat16", couplings=1, patch_size=1, kinds=("channels",))
  # Forward mode, which recomputes nothing: two programs may round an intermediate of 16 bits differently.
  jacobian, logdet = jax.jacfwd(lambda x: run(small, few, x.reshape(1, 4, 4, 2)), has_aux=True)(x[:1, :4, :4].ravel())
  np.testing.assert_allclose(logdet[0], jnp.linalg.slogdet(jacobian.reshape(32, 32))[1], atol=1e-5)


def test_permutations_are_constants_drawn_from_the_key(tiny_flow):
  _, one = tiny_flow((4, 4, 2), seed=1)
  _, again = tiny_flow((4, 4, 2), seed=1)
  _, other = tiny_flow((4, 4, 2), seed=2)
  assert set(one) == {"params", "permutations"}
  jax.tree.map(np.testing.assert_array_equal, one["permutations"], again["permutations"])
  assert not np.array_equal(one["permutations"]["channels"], other["permutations"]["channels"])


@pytest.mark.parametrize(
  ("settings", "shape", "message"),
  [
    ({"patch_size": 5}, (64, 64, 3), r"patch_size=5 must divide the image height 64; try one of \[1, 2, 4"),
    ({"patch_size": 4}, (8, 6, 3), "image width 6"),
    ({"heads": 3}, (8, 8, 3), r"heads=3 must divide width=512; try one of \[1, 2, 4"),
    ({"patch_size": 1}, (8, 8, 3), "even"),
    ({"patch_size": 8}, (8, 8, 3), "equal halves"),
    ({"couplings": 0}, (8, 8, 3), "couplings=0 must be positive"),
    ({"scale_bound": float("nan")}, (8, 8, 3), "scale_bound=nan must be positive and finite"),
    ({"scale_bound": float("inf")}, (8, 8, 3), "scale_bound=inf must be positive and finite"),
    ({"remat": "some"}, (8, 8, 3), "none, dots, blocks, full"),
    ({"dtype": "float16"}, (8, 8, 3), "bfloat16"),
    ({"coupling_transform": "cubic"}, (8, 8, 3), "coupling_transform='cubic' must be one of affine, additive, mixture"),
    ({"mixture_components": 0}, (8, 8, 3), "mixture_components=0 must be at least 1"),
    ({"dequantizer_couplings": -1}, (8, 8, 3), "dequantizer_couplings=-1 must be at least 0, for uniform noise"),
    ({"predictor": "cnn"}, (8, 8, 3), "predictor='cnn' needs a grid of tokens.*set masking=True, or only channels in"),
    ({"predictor": "cnn", "masking": True, "attention": "xla"}, (8, 8, 3), "predictor='cnn'; leave it at 'auto'"),
    ({"predictor": "cnn", "masking": True, "heads": 3, "dequantizer_couplings": 1}, (8, 8, 3), "heads=3 must divide"),
    ({"resolutions": 0}, (64, 64, 3), "resolutions=0 must be from 1 to 5: .* the 16x16 grid of patches"),
    ({"resolutions": 3}, (24, 8, 3), "resolutions=3 must be from 1 to 2: .*; a smaller patch_size may allow more"),
    ({"resolutions": 2}, (8, 8, 3), "on a grid of 1x1 patches .*, or fewer resolutions"),
    (
      {"patch_size": 1, "masking": True},
      (8, 8, 3),
      "even count of numbers to be halved, and holds .* = 3; use an even",
    ),
    (
      {"patch_size": 1, "masking": True, "kinds": ("spatial",), "resolutions": 2},
      (8, 8, 3),
      "an even count of numbers",
    ),
  ],
)
def test_shapes_that_the_flow_cannot_split_are_refused(settings, shape, message):
  with pytest.raises(ValueError, match=message):
    Jet(**settings).check(shape)


def test_integers_and_images_of_another_shape_are_refused(tiny_flow):
  model, variables = tiny_flow((4, 4, 2))
  with pytest.raises(ValueError, match=r"\(B, H, W, C\); add the missing axes"):
    model.apply(variables, jnp.zeros((4, 4, 2)))
  with pytest.raises(TypeError, match="dequantize"):
    model.apply(variables, jnp.zeros((1, 4, 4, 2), jnp.uint8))
  with pytest.raises(ValueError, match=r"the shape it was made for"):
    model.apply(variables, jnp.zeros((1, 4, 8, 2)))

"""Array types of the flow: names for what the layers hand to each other."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

State = Float[Array, "batch tokens channels"]  # the patchified image, tokens and channels in the order of a layer
Logdet = Float[Array, " batch"]  # nats
Half = Float[Array, "batch tokens half_channels"]  # of a state, by either kind of split
TokenOrder = Int[Array | np.ndarray, " tokens"]  # a permutation
ChannelOrder = Int[Array | np.ndarray, " channels"]
Features = Float[Array, "rows length features"] | None  # that predictors read; a row an image, or two with guidance


class Given(NamedTuple):
  """A context with numbers of the state that are known, which pass through all layers."""

  features: Features
  known: Bool[Array, "batch tokens channels"]


Context = Features | Given  # what a layer is given besides the state

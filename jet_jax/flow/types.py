"""Array types of the flow: names for what the layers hand to each other."""

import numpy as np
from jaxtyping import Array, Float, Int

State = Float[Array, "batch tokens channels"]  # the patchified image, tokens and channels in the order of a layer
Logdet = Float[Array, " batch"]  # nats
Half = Float[Array, "batch tokens half_channels"]  # of a state, by either kind of split
TokenOrder = Int[Array | np.ndarray, " tokens"]  # a permutation
ChannelOrder = Int[Array | np.ndarray, " channels"]
Context = Float[Array, "batch length features"] | None  # what a predictor may read besides the state

"""Array types of the flow: names for what the layers hand to each other."""

import numpy as np
from jaxtyping import Array, Float, Int

State = Float[Array, "batch dims"]  # the patchified image as a flat vector, in the order that a layer works in
Logdet = Float[Array, " batch"]  # nats
Tokens = Float[Array, "batch tokens channels"]
Order = Int[Array | np.ndarray, " dims"]  # a permutation of the numbers of a state
Context = Float[Array, "batch length width"] | None  # what a predictor may read besides the state

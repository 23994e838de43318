"""A data source, given as a string, becomes batches of uint8."""

from jet_jax.data.batches import Reader, eval_batches, place_ahead, train_batches

__all__ = ["Reader", "eval_batches", "place_ahead", "train_batches"]

"""Invertible layers, and the networks that predict inside them."""

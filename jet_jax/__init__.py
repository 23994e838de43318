"""Jet (arXiv 2412.15129): a normalizing flow for images built from affine couplings and Vision Transformers."""

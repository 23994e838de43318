"""Meshes, processes and signals."""

"""Backpropagation written out by hand in JAX."""

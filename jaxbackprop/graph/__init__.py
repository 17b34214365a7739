"""Backpropagation for any JAX function: a reverse walk over its computation graph."""

"""Sums across the devices of a mesh, inside jax.shard_map where it checks what varies.

A value that is the same on all devices and used on each has one use a device: its contributions
sum across them. The sum of the devices' values gives each of them its cotangent. The unchecked
`psum` does not say which of its operands vary: it has no rule, and is refused by name.
"""

from jax import lax

from jaxbackprop.graph.rules.table import rule


@rule("pvary")
def pvary(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.psum(ct, axes),)


@rule("psum_invariant")
def psum_invariant(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.pcast(ct, axes, to="varying"),)

"""Exchange across the devices of a mesh or the rows of a vmap: each is linear, here its transpose.

Inside jax.shard_map where it checks what varies, a value that is the same on all devices and used
on each has one use a device: its contributions sum across them (`pvary`), and the sum of the
devices' values gives each of them its cotangent (`psum_invariant`). Where nothing is checked every
device has its own copy of a sum, and all of their cotangents sum (`psum`).
"""

import jax
import jax.numpy as jnp
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


@rule("psum")
def psum(cts, outs, x, *, axes, axis_index_groups):
    """Axes that are numbers are the array's own: their cotangent is spread over them."""
    (ct,) = cts
    own = [axis for axis in axes if isinstance(axis, int)]
    named = tuple(axis for axis in axes if not isinstance(axis, int))

    def spread():
        sums = jnp.broadcast_to(jnp.expand_dims(ct, own), x.shape) if own else ct
        return lax.psum(sums, named, axis_index_groups=axis_index_groups)

    return (spread,)


@rule("all_gather")
def all_gather(
    cts, outs, x, *, all_gather_dimension, axis_name, axis_index_groups, axis_size, tiled
):
    (ct,) = cts
    options = {"axis_index_groups": axis_index_groups, "tiled": tiled}
    return (
        lambda: lax.psum_scatter(ct, axis_name, scatter_dimension=all_gather_dimension, **options),
    )


@rule("all_gather_invariant")
def all_gather_invariant(cts, outs, x, *, all_gather_dimension, axis_name, axis_size, tiled):
    """What is gathered is the same everywhere: of its cotangent each takes its own part."""
    (ct,) = cts
    size = ct.shape[all_gather_dimension] // axis_size
    start = lax.axis_index(axis_name) * size

    def own_part():
        part = lax.dynamic_slice_in_dim(ct, start, size, all_gather_dimension)
        return part if tiled else lax.squeeze(part, [all_gather_dimension])

    return (own_part,)


@rule("reduce_scatter")
def reduce_scatter(
    cts, outs, x, *, axis_name, scatter_dimension, axis_index_groups, axis_size, tiled
):
    (ct,) = cts
    options = {"axis_index_groups": axis_index_groups, "tiled": tiled}
    return (lambda: lax.all_gather(ct, axis_name, axis=scatter_dimension, **options),)


@rule("ppermute")
def ppermute(cts, outs, x, *, axis_name, perm, **_):
    (ct,) = cts
    return (lambda: lax.ppermute(ct, axis_name, [(to, source) for source, to in perm]),)


@rule("all_to_all")
def all_to_all(cts, outs, x, *, axis_name, split_axis, concat_axis, axis_index_groups, tiled):
    (ct,) = cts
    options = {"axis_index_groups": axis_index_groups, "tiled": tiled}
    return (lambda: lax.all_to_all(ct, axis_name, concat_axis, split_axis, **options),)


@rule("pbroadcast")
def pbroadcast(cts, outs, x, *, axis_name, source):
    """Everyone has the source's value: the source gets all cotangents, the others none."""
    (ct,) = cts
    is_source = lax.axis_index(axis_name) == source
    return (lambda: jnp.where(is_source, lax.psum(ct, axis_name), jnp.zeros_like(ct)),)


@rule("reshard")
def reshard(cts, outs, x, **_):
    """A change of layout: back in the old one."""
    (ct,) = cts
    return (lambda: jax.sharding.reshard(ct, jax.typeof(x).sharding),)

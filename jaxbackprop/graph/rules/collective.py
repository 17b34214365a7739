"""Sums, copies and exchanges across the devices of a mesh, or along a named axis of vmap.

Inside a jax.shard_map that checks what varies, a value that is the same on all devices and used on
each has one use a device: its contributions sum across them, and the sum of the devices' values
gives each of them its cotangent. Where nothing is checked (vmap, and check_vma=False) every device
has its own copy of a sum, each copy has a cotangent, and these sum: psum is its own way back.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.compared import in_memory
from jaxbackprop.graph.rules.reduction import spread
from jaxbackprop.graph.rules.table import rule


@rule("pvary")
def pvary(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.psum(ct, axes),)


@rule("psum_invariant")
def psum_invariant(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.pcast(ct, axes, to="varying"),)


def _named(axes):
    """The axes of a collective that are of devices or of a vmap: a number is one of x's own."""
    return tuple(axis for axis in axes if not isinstance(axis, int))


def _own(axes):
    return [axis for axis in axes if isinstance(axis, int)]


@rule("psum")
def psum(cts, outs, x, *, axes, axis_index_groups):
    (ct,) = cts

    def back():
        named = _named(axes)
        total = lax.psum(ct, named, axis_index_groups=axis_index_groups) if named else ct
        return spread(total, x, _own(axes))

    return (back,)


def _pextreme(extreme):
    def rule(cts, outs, x, *, axes, axis_index_groups):
        """To the device that holds it; to k equal ones 1/k each."""
        (ct,) = cts

        def back():
            held, groups = in_memory(x), {"axis_index_groups": axis_index_groups}
            most = spread(extreme(held, axes, **groups), x, _own(axes))
            holds = (held == most).astype(ct.dtype)
            count = lax.psum(holds, axes, **groups)
            named = _named(axes)
            checked = set(named) & set(getattr(jax.typeof(x), "vma", ()))
            total = lax.psum(ct, named, **groups) if named and not checked else ct
            return holds * spread(total / count, x, _own(axes))

        return (back,)

    return rule


rule("pmax")(_pextreme(lax.pmax))
rule("pmin")(_pextreme(lax.pmin))


@rule("ppermute")
def ppermute(cts, outs, x, *, axis_name, perm):
    """Each sender gets the cotangent of its receiver."""
    (ct,) = cts
    return (lambda: lax.ppermute(ct, axis_name, [(to, of) for of, to in perm]),)


@rule("pbroadcast", "pbroadcast_dynamic")
def pbroadcast(cts, outs, x, *dynamic, axis_name, source=None):
    """The source gets the sum of its copies' cotangents."""
    (ct,) = cts
    (source,) = dynamic or (source,)

    def back():
        total = lax.psum(ct, axis_name)
        return jnp.where(lax.axis_index(axis_name) == source, total, 0)

    return (back, *(None for _ in dynamic))


@rule("all_gather")
def all_gather(
    cts, outs, x, *, all_gather_dimension, axis_name, axis_index_groups, tiled, **params
):
    """Each device's part was copied to all of them: its cotangents sum, and are scattered."""
    (ct,) = cts
    return (
        lambda: lax.psum_scatter(
            ct,
            axis_name,
            scatter_dimension=all_gather_dimension,
            axis_index_groups=axis_index_groups,
            tiled=tiled,
        ),
    )


@rule("reduce_scatter")
def reduce_scatter(cts, outs, x, *, axis_name, scatter_dimension, tiled, axis_index_groups, **_):
    """Every device added to each part: it gets the cotangents of all parts."""
    (ct,) = cts
    return (
        lambda: lax.all_gather(
            ct,
            axis_name,
            axis=scatter_dimension,
            axis_index_groups=axis_index_groups,
            tiled=tiled,
        ),
    )


@rule("all_gather_invariant")
def all_gather_invariant(cts, outs, x, *, all_gather_dimension, axis_name, tiled, **params):
    """The gathered array is one for all devices: each gets its own part of the cotangent."""
    (ct,) = cts

    def back():
        size = x.shape[all_gather_dimension] if tiled else 1
        start = lax.axis_index(axis_name) * size
        part = lax.dynamic_slice_in_dim(ct, start, size, all_gather_dimension)
        return part if tiled else lax.squeeze(part, [all_gather_dimension])

    return (back,)


@rule("all_to_all")
def all_to_all(cts, outs, x, *, axis_name, split_axis, concat_axis, tiled, **groups):
    """The exchange, undone: split where it was joined, joined where it was split. The primitive
    itself is always tiled: it is jax's function that takes an axis away and puts one in."""
    (ct,) = cts
    return (lambda: lax.all_to_all(ct, axis_name, concat_axis, split_axis, tiled=True, **groups),)


# The devices' parts of a sum that has not been made yet are `unreduced`; the cotangent of a value
# that is the same everywhere, `reduced`, is such a sum, and the other way about.


@rule("preduced")
def preduced(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.psum(ct, axes),)


@rule("unreduced_psum")
def unreduced_psum(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.pcast(ct, axes, to="reduced"),)


@rule("vary_unreduced_cast", "vary_unreduced_cast_p")
def vary_unreduced_cast(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.pcast(ct, axes, to="varying"),)


@rule("reduced_vary_cast", "reduced_vary_cast_p")
def reduced_vary_cast(cts, outs, x, *, axes):
    (ct,) = cts
    return (lambda: lax.pcast(ct, axes, to="unreduced"),)

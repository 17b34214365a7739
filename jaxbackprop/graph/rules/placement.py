"""Where a value is, and when it is computed: its cotangent is the same number, in x's place."""

import jax

from jaxbackprop.graph.rules.table import rule


@rule("copy", "copy_p", "optimization_barrier", "name", "stage", "xla_metadata_value")
@rule("sharding_constraint", "layout_constraint", "relayout", "shard_alike")
@rule("one_at_a_time")  # of a gradient with checkpoint=within(bytes)
def same(cts, outs, *xs, **params):
    return tuple((lambda ct=ct: ct) for ct in cts)


@rule("tie", "array_of_its_own")
def tie(cts, outs, x, y):
    """y, once x is there."""
    (ct,) = cts
    return (None, lambda: ct)


@rule("reshard")
def reshard(cts, outs, x, **params):
    """Back to the sharding of x, where it has one."""
    (ct,), home = cts, jax.typeof(x).sharding
    return (lambda: ct if home.mesh.empty else jax.sharding.reshard(ct, home),)


@rule("device_put", zeros=False)
def device_put(cts, outs, *xs, srcs, **params):
    """Back to the device, sharding or kind of memory that it came from."""

    def back(ct, x, source):
        if source is None and jax.typeof(ct).memory_space != jax.typeof(x).memory_space:
            source = jax.typeof(x).memory_space
        return ct if source is None else jax.device_put(ct, source)

    return tuple(
        None if ct is None else (lambda ct=ct, x=x, source=source: back(ct, x, source))
        for ct, x, source in zip(cts, xs, srcs, strict=True)
    )

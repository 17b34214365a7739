"""Reading and writing parts of an array: a read is a write on the way back, and a write a read."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.compared import in_memory
from jaxbackprop.graph.rules.table import UnsupportedPrimitive, placed, rule


@rule("slice")
def slice_(cts, outs, x, *, start_indices, limit_indices, strides):
    (ct,) = cts

    def back():
        steps = strides or (1,) * x.ndim
        config = []
        for n, start, step, length in zip(x.shape, start_indices, steps, ct.shape, strict=True):
            end = start + (length - 1) * step + 1 if length else start
            config.append((start, n - end, step - 1))
        return lax.pad(ct, jnp.zeros((), ct.dtype), config)

    return (back,)


@rule("dynamic_slice")
def dynamic_slice(cts, outs, x, *starts, slice_sizes):
    """A start out of bounds is moved in, on the way back as on the way forward.

    A negative start is out of bounds: the primitive does not count from the end.
    """
    (ct,) = cts
    return (
        lambda: lax.dynamic_update_slice(
            jnp.zeros_like(x), ct, starts, allow_negative_indices=False
        ),
        *(None for _ in starts),
    )


@rule("dynamic_update_slice")
def dynamic_update_slice(cts, outs, x, update, *starts):
    (ct,) = cts
    return (
        lambda: lax.dynamic_update_slice(
            ct, jnp.zeros_like(update), starts, allow_negative_indices=False
        ),
        lambda: lax.dynamic_slice(ct, starts, update.shape, allow_negative_indices=False),
        *(None for _ in starts),
    )


@rule("gather")
def gather(cts, outs, x, indices, *, dimension_numbers, mode, **params):
    """A number read several times gets the sum of its cotangents."""
    (ct,) = cts
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=dimension_numbers.offset_dims,
        inserted_window_dims=dimension_numbers.collapsed_slice_dims,
        scatter_dims_to_operand_dims=dimension_numbers.start_index_map,
        operand_batching_dims=dimension_numbers.operand_batching_dims,
        scatter_indices_batching_dims=dimension_numbers.start_indices_batching_dims,
    )
    flags = {name: params[name] for name in ("indices_are_sorted", "unique_indices")}
    return (
        lambda: lax.scatter_add(jnp.zeros_like(x), indices, ct, numbers, mode=mode, **flags),
        None,
    )


def _read(array, indices, like, dimension_numbers, mode):
    """Gather from array what a scatter of `like` would write."""
    window = iter(dimension_numbers.update_window_dims)
    flat = (
        *dimension_numbers.inserted_window_dims,
        *dimension_numbers.operand_batching_dims,
    )
    sizes = [1 if d in flat else like.shape[next(window)] for d in range(array.ndim)]
    numbers = lax.GatherDimensionNumbers(
        offset_dims=dimension_numbers.update_window_dims,
        collapsed_slice_dims=dimension_numbers.inserted_window_dims,
        start_index_map=dimension_numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=dimension_numbers.operand_batching_dims,
        start_indices_batching_dims=dimension_numbers.scatter_indices_batching_dims,
    )
    return lax.gather(array, indices, numbers, sizes, mode=mode, fill_value=0)


@rule("scatter-add")
def scatter_add(cts, outs, x, indices, updates, *, dimension_numbers, mode, **params):
    (ct,) = cts
    return (lambda: ct, None, lambda: _read(ct, indices, updates, dimension_numbers, mode))


@rule("scatter-sub")
def scatter_sub(cts, outs, x, indices, updates, *, dimension_numbers, mode, **params):
    (ct,) = cts
    return (lambda: ct, None, lambda: -_read(ct, indices, updates, dimension_numbers, mode))


@rule("scatter")
def scatter(cts, outs, x, indices, updates, *, dimension_numbers, mode, **params):
    """To what was overwritten nothing; of several writes to one place, to the one that stayed."""
    (ct,) = cts

    def writers():
        numbers = jnp.arange(1, updates.size + 1, dtype=jnp.int32).reshape(updates.shape)
        numbers = placed(numbers, jax.typeof(updates))
        left = lax.scatter(
            jnp.zeros_like(x, jnp.int32), indices, numbers, dimension_numbers, mode=mode
        )
        return left, numbers

    def to_updates():
        left, numbers = writers()
        stayed = _read(left, indices, updates, dimension_numbers, mode) == numbers
        return jnp.where(stayed, _read(ct, indices, updates, dimension_numbers, mode), 0)

    return (lambda: jnp.where(writers()[0] == 0, ct, jnp.zeros_like(ct)), None, to_updates)


@rule("scatter-mul")
def scatter_mul(
    cts, outs, x, indices, updates, *, dimension_numbers, mode, unique_indices, **params
):
    """To x the factors it met; to a factor what it met, which must be x alone."""
    (ct,) = cts

    def to_x():
        unique = {"unique_indices": unique_indices}
        return lax.scatter_mul(ct, indices, updates, dimension_numbers, mode=mode, **unique)

    def to_updates():
        if not unique_indices:
            raise UnsupportedPrimitive("no rule for 'scatter-mul' without unique_indices=True")
        return _read(ct * x, indices, updates, dimension_numbers, mode)

    return (to_x, None, to_updates)


def _scatter_extreme(scatter):
    def rule(cts, outs, x, indices, updates, *, dimension_numbers, mode, **params):
        """To the number that stayed, old or new; to k equal ones 1/k each."""
        (ct,) = cts

        def count(which):
            return lax.scatter_add(
                jnp.zeros_like(x), indices, which.astype(x.dtype), dimension_numbers, mode=mode
            )

        @functools.cache
        def stayed():
            was, came = in_memory(x), in_memory(updates)
            out = scatter(was, indices, came, dimension_numbers, mode=mode)
            new = came == _read(out, indices, updates, dimension_numbers, mode)
            old = (was == out) | (count(jnp.ones_like(updates)) == 0)
            holders = count(new) + old.astype(x.dtype)
            return old, new, ct / jnp.maximum(holders, 1)

        def to_x():
            old, _, share = stayed()
            return jnp.where(old, share, 0)

        def to_updates():
            _, new, share = stayed()
            return jnp.where(new, _read(share, indices, updates, dimension_numbers, mode), 0)

        return (to_x, None, to_updates)

    return rule


rule("scatter-max")(_scatter_extreme(lax.scatter_max))
rule("scatter-min")(_scatter_extreme(lax.scatter_min))

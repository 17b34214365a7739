"""The part of an array that an index names: read, replaced, added to, all of it as values.

What stands between the brackets of `ref[i, 1:3]` comes as jax's transforms, applied one after the
other: an index (`indices`: numbers, arrays of them, slices), a new shape, other axes. Outside of
the array they do what jax does: a slice is moved inside, an array of indices skips.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbackprop.graph.rules.table import UnsupportedPrimitive


def read(x: Any, transforms: Sequence) -> Any:
    for transform in transforms:
        x = _part(x, transform)
    return x


def write(x: Any, transforms: Sequence, part: Any) -> Any:
    """x, with another part in the place of that one."""
    if not transforms:
        return part
    first, *rest = transforms
    return _put(x, first, write(_part(x, first), rest, part))


def add(x: Any, transforms: Sequence, part: Any) -> Any:
    """x, with that part increased; what an index names twice is increased twice."""
    if not transforms:
        return x + part
    first, *rest = transforms
    if not rest and _is_index(first) and not _is_block(first):
        return x.at[_index(first)].add(part)
    return _put(x, first, add(_part(x, first), rest, part))


def _part(x: Any, transform: Any) -> Any:
    if not _is_index(transform):
        return _other_form(x, transform)
    if not _is_block(transform):
        return x[_index(transform)]
    starts, sizes, points = _block(transform)
    if sizes == jnp.shape(x):
        return lax.squeeze(x, points)
    if all(isinstance(start, int) for start in starts):
        block = lax.slice(x, starts, [a + n for a, n in zip(starts, sizes, strict=True)])
    else:
        block = lax.dynamic_slice(x, _as_indices(starts), sizes)
    return lax.squeeze(block, points)


def _put(x: Any, transform: Any, part: Any) -> Any:
    if not _is_index(transform):
        return _own_form(x, transform, part)
    if not _is_block(transform):
        return x.at[_index(transform)].set(part)
    starts, sizes, points = _block(transform)
    block = lax.expand_dims(part, points)
    return (
        block if sizes == jnp.shape(x) else lax.dynamic_update_slice(x, block, _as_indices(starts))
    )


def _is_index(transform: Any) -> bool:
    return hasattr(transform, "indices")


def _is_slice(index: Any) -> bool:
    return hasattr(index, "stride")


def _is_block(transform: Any) -> bool:
    """A slice along each axis, without gaps, or one place of it?"""
    return all(i.stride == 1 if _is_slice(i) else not np.shape(i) for i in transform.indices)


def _block(transform: Any) -> tuple[list, tuple, list[int]]:
    """Where it starts, how long it is along each axis, and the axes that are left out of it."""
    indices = transform.indices
    starts = [_static(i.start if _is_slice(i) else i) for i in indices]
    sizes = tuple(i.size if _is_slice(i) else 1 for i in indices)
    return starts, sizes, [axis for axis, i in enumerate(indices) if not _is_slice(i)]


def _static(start: Any) -> Any:
    """A number that is known is an int."""
    return start if isinstance(start, jax.Array) else int(start)


def _as_indices(starts: Sequence) -> list:
    return [lax.convert_element_type(start, "int32") for start in starts]


def _index(transform: Any) -> tuple:
    """As it stands between the brackets of an array."""
    return tuple(_range(i) if _is_slice(i) else i for i in transform.indices)


def _range(i: Any) -> Any:
    if isinstance(i.start, jax.Array):
        raise UnsupportedPrimitive(
            "a mutable array is indexed by arrays and by a slice whose start is computed: "
            "write the slice as an array of indices"
        )
    return slice(i.start, i.start + (i.size - 1) * i.stride + 1, i.stride)


def _other_form(x: Any, transform: Any) -> Any:
    if hasattr(transform, "permutation"):
        return lax.transpose(x, transform.permutation)
    if hasattr(transform, "shape"):
        return lax.reshape(x, transform.shape)
    raise UnsupportedPrimitive(f"a mutable array is looked at through '{type(transform).__name__}'")


def _own_form(x: Any, transform: Any, part: Any) -> Any:
    if hasattr(transform, "permutation"):
        return lax.transpose(part, np.argsort(transform.permutation))
    return lax.reshape(part, jnp.shape(x))

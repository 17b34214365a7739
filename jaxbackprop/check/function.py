"""Any scalar function of pytrees as a function of one flat vector, in float64 where it can be."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.check.leaves import FLOATING, dtype_name, host, named_leaves

BLOCK, LARGE = 48, 100_000  # points a call, fewer where each has many numbers


class Flat(NamedTuple):
    """f of n numbers. `values` maps points (r, n) to (r,), `rounded` points to those f can see."""

    x: np.ndarray
    cost: float
    dtype: str  # that f computes in, as far as its result tells
    why: str  # what f said when it was given float64, where it did not take it
    values: Callable[[np.ndarray], np.ndarray]
    rounded: Callable[[np.ndarray], np.ndarray]


def flatten(f: Callable[..., Any], args: tuple, argnums: int | tuple[int, ...]) -> Flat:
    """f on a float64 copy of its arguments where it takes one, else on the arguments.

    Raises ValueError where f is not scalar, not real, not finite at the arguments or gives another
    value when it is called again, or where the arguments in `argnums` are not there or not real
    floating point.
    """
    for index in (argnums,) if isinstance(argnums, int) else argnums:
        if not -len(args) <= index < len(args):
            raise ValueError(f"argnums is {argnums}, f was given {len(args)} arguments")
        named_leaves(args[index], f"argument {index}")
    try:
        return _flat(f, args, argnums, wide=True)
    except Refused:
        raise
    except Exception as error:  # whatever f raises because it does not take float64
        why = str(error).strip().split("\n")[0][:200] or type(error).__name__
        return _flat(f, args, argnums, wide=False)._replace(why=why)


class Refused(ValueError):
    """f itself has no gradient to check: another precision would not help."""


def precision(wide: bool) -> contextlib.AbstractContextManager:
    """float64 allowed, or the caller's own setting."""
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def _flat(f: Callable, args: tuple, argnums: int | tuple[int, ...], wide: bool) -> Flat:
    with precision(wide):
        args = jax.tree.map(_widened, args) if wide else args
        chosen = args[argnums] if isinstance(argnums, int) else tuple(args[k] for k in argnums)
        leaves, treedef = jax.tree.flatten(chosen)

        def at(leaves: list) -> Any:
            moved = jax.tree.unflatten(treedef, leaves)
            new = {argnums: moved} if isinstance(argnums, int) else dict(zip(argnums, moved))  # noqa: B905
            return f(*(new.get(k, arg) for k, arg in enumerate(args)))

        cost, dtype = _twice(at, leaves)
    x = np.concatenate([np.ravel(host(leaf)) for leaf in leaves]) if leaves else np.zeros(0)
    return Flat(x, cost, dtype, "", _values(at, leaves, wide), _rounded(leaves))


def shape_of(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _widened(leaf: Any) -> Any:
    """A float64 copy of a floating point array, anything else as it is."""
    if not hasattr(leaf, "dtype") or dtype_name(leaf) not in FLOATING:
        return leaf
    return leaf.double() if hasattr(leaf, "detach") else leaf.astype("float64")


def _twice(at: Callable, leaves: list) -> tuple[float, str]:
    """The value of f and its dtype: checked, and the same again."""
    first, second = at(leaves), at(leaves)
    if shape_of(first) != ():
        raise Refused(f"f returns an array of shape {shape_of(first)}, expected a scalar")
    if dtype_name(first) not in FLOATING:
        raise Refused(f"f returns {dtype_name(first)}, expected real floating point")
    cost, again = float(first), float(second)
    if not np.isfinite(cost):
        raise Refused(f"f is {cost} at the arguments: there is no gradient to check")
    if cost != again:
        raise Refused(f"f is not deterministic: {cost!r}, then {again!r}, at the same arguments")
    return cost, dtype_name(first)


def _values(at: Callable, leaves: list, wide: bool) -> Callable[[np.ndarray], np.ndarray]:
    """f at each row of an array: compiled where jax can trace f, one by one where it cannot."""
    with precision(wide):
        compiled = jax.jit(lambda rows: jax.lax.map(lambda row: at(_split(row, leaves)), rows))
        block = BLOCK if sum(math.prod(shape_of(leaf)) for leaf in leaves) < LARGE else 6
        traceable = _traceable(at, leaves)

    def values(points: np.ndarray) -> np.ndarray:
        with precision(wide):
            if not traceable:
                return np.array([float(at(_split(row, leaves))) for row in points])
            rows = -len(points) % block
            padded = np.concatenate([points, np.repeat(points[-1:], rows, 0)])
            parts = [compiled(padded[k : k + block]) for k in range(0, len(padded), block)]
            return np.concatenate([np.asarray(part, np.float64) for part in parts])[: len(points)]

    return values


def _traceable(at: Callable, leaves: list) -> bool:
    if any(hasattr(leaf, "detach") for leaf in leaves):
        return False
    try:
        jax.eval_shape(at, leaves)
    except Exception:  # NumPy's functions, float(), an `if`: f then sees arrays, one at a time
        return False
    return True


def _split(row: Any, leaves: list) -> list:
    """The row as leaves of the kind, shape and dtype of `leaves`."""
    parts, start = [], 0
    for leaf in leaves:
        shape = getattr(leaf, "shape", ())
        end = start + math.prod(shape)
        part, start = row[start:end].reshape(shape), end
        if isinstance(row, jax.Array):
            parts.append(part.astype(jnp.result_type(leaf)))
        elif hasattr(leaf, "detach"):
            parts.append(leaf.detach().new_tensor(part))
        elif isinstance(leaf, jax.Array):
            parts.append(jnp.asarray(part, leaf.dtype))
        else:
            parts.append(part.astype(leaf.dtype) if hasattr(leaf, "dtype") else float(part))
    return parts


def _rounded(leaves: list) -> Callable[[np.ndarray], np.ndarray]:
    """Points as the leaves' dtypes hold them."""
    dtypes = [dtype_name(leaf) if hasattr(leaf, "dtype") else "float64" for leaf in leaves]
    if all(dtype == "float64" for dtype in dtypes):
        return lambda points: points
    ends = np.cumsum([math.prod(shape_of(leaf)) for leaf in leaves])[:-1]

    def rounded(points: np.ndarray) -> np.ndarray:
        parts = zip(np.split(points, ends, axis=-1), dtypes, strict=True)
        return np.concatenate([part.astype(jnp.dtype(d)).astype(float) for part, d in parts], -1)

    return rounded

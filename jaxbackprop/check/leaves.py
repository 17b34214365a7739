"""Gradients from anywhere as named float64 leaves, and errors for those that cannot be compared."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import PyTreeDef, keystr

FLOATING = ("float64", "float32", "float16", "bfloat16")
BARE = "array"  # the name of a pytree that is one array


class Named(NamedTuple):
    """A leaf: its path in the pytree, its dtype's name, its values in float64."""

    name: str
    dtype: str
    values: np.ndarray


def dtype_name(leaf: Any) -> str:
    """float32 for jax's, NumPy's and PyTorch's float32; jax's default for a Python float."""
    if isinstance(leaf, float | int | complex):
        return str(jax.numpy.result_type(leaf))
    return str(getattr(leaf, "dtype", type(leaf).__name__)).removeprefix("torch.")


def eps(dtype: str) -> float:
    """The distance from 1 to the next number."""
    return float(jax.numpy.finfo(dtype).eps)


def smallest(dtype: str) -> float:
    """The least normal number."""
    return float(jax.numpy.finfo(dtype).tiny)


def host(leaf: Any) -> np.ndarray:
    """The values in float64. A tensor of PyTorch's converts itself: torch is never imported."""
    if hasattr(leaf, "detach"):
        return leaf.detach().cpu().double().numpy()
    return np.asarray(leaf).astype(np.float64)


def leaf_name(path: tuple) -> str:
    """The path as one would write it: `encoder.kernel`, `[0].W`; a bare array is called `array`.

    The `value` that flax's variables hold is not part of the name, and its State has a list's
    places as the keys of a dict.
    """
    steps = [_step(key) for key in path]
    if len(steps) > 1 and steps[-1] in (".value", ".raw_value"):
        steps = steps[:-1]
    return "".join(steps).removeprefix(".") or BARE


def _step(key: Any) -> str:
    place = getattr(key, "idx", getattr(key, "key", None))
    return f"[{place}]" if isinstance(place, int) else "." + keystr((key,), simple=True)


def named_leaves(tree: Any, what: str) -> list[Named]:
    """The leaves of `tree` with their paths, such as `[0].W`; a bare array is called `array`.

    Raises ValueError, naming the leaf, where one is not real floating point.
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [named(leaf_name(path), leaf, what) for path, leaf in paths]


def named(name: str, leaf: Any, what: str) -> Named:
    """Raises ValueError where the leaf is not real floating point."""
    dtype = dtype_name(leaf)
    if dtype not in FLOATING:
        raise ValueError(f"{what}: leaf {name} holds {dtype}, expected real floating point")
    return Named(name, dtype, host(leaf))


def check_form(
    reference: Any, candidate: Any, names: tuple[str, str]
) -> tuple[list[Named], list[Named]]:
    """The named leaves of both.

    Raises ValueError, naming the first leaf where structure, shape or dtype differ.
    """
    if jax.tree.structure(reference) != jax.tree.structure(candidate):
        raise ValueError(structures(reference, candidate, names))
    expected, found = named_leaves(reference, names[0]), named_leaves(candidate, names[1])
    for r, c in zip(expected, found, strict=True):
        check_shape(r, c, names)
        if r.dtype != c.dtype:
            raise ValueError(f"leaf {r.name}: {names[0]} is {r.dtype}, {names[1]} {c.dtype}")
    return expected, found


def check_shape(r: Named, c: Named, names: tuple[str, str]) -> None:
    """Raises ValueError where the shapes differ, and says what that looks like."""
    if r.values.shape != c.values.shape:
        raise ValueError(
            f"leaf {r.name}: {names[0]} has shape {r.values.shape}, "
            f"{names[1]} {c.values.shape}{_why(r.values, c.values)}"
        )


def structures(reference: Any, candidate: Any, names: tuple[str, str]) -> str:
    """How two structures differ: the first leaf that only one has, or their kinds of node."""
    expected, found = (
        [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        for tree in (reference, candidate)
    )
    for has, lacks, ours, theirs in ((0, 1, expected, found), (1, 0, found, expected)):
        if missing := [name for name in ours if name not in theirs]:
            return f"leaf {missing[0]} of {names[has]} has no counterpart in {names[lacks]}"
    differ = _node(jax.tree.structure(reference), jax.tree.structure(candidate))
    return (
        f"the containers of leaf {expected[0] if expected else '.'} differ: "
        f"{differ[0]} in {names[0]}, {differ[1]} in {names[1]}"
    )


def _node(r: PyTreeDef, c: PyTreeDef) -> tuple[str, str]:
    """The first pair of nodes of different kinds."""
    if r.node_data() != c.node_data():
        return _kind(r), _kind(c)
    pairs = zip(r.children(), c.children(), strict=True)
    return next((_node(*pair) for pair in pairs if pair[0] != pair[1]), ("one", "another"))


def _kind(node: PyTreeDef) -> str:
    data = node.node_data()
    return getattr(data[0], "__name__", str(data[0])) if data else "a leaf"


def _why(r: np.ndarray, c: np.ndarray) -> str:
    """What a difference of shapes says about the gradient."""
    if c.shape == r.shape[::-1] and c.shape != r.shape:
        return ": transposed"
    if c.shape == ():
        return ": one number for all entries: summed over everything, without an axis?"
    fewer = [k for k in range(r.ndim) if r.shape[:k] + r.shape[k + 1 :] == c.shape]
    if fewer:
        return f": summed over axis {fewer[0]}, which is the argument's own"
    if c.ndim > r.ndim and c.shape[c.ndim - r.ndim :] == r.shape:
        return ": a broadcast was not summed over the leading axes"
    stretched = [k for k, (n, m) in enumerate(zip(r.shape, c.shape, strict=False)) if n != m]
    if c.ndim == r.ndim and all(r.shape[k] == 1 for k in stretched):
        return f": a broadcast was not summed over axis {', '.join(map(str, stretched))}"
    if c.size == r.size:
        return ": the same number of entries, reshaped"
    return ""

"""What moves: the floating point leaves of the arguments that a gradient is by."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef

from jaxbackprop.check.leaves import (
    FLOATING,
    Named,
    check_shape,
    dtype_name,
    eps,
    host,
    leaf_name,
    named,
    named_leaves,
    structures,
)
from jaxbackprop.graph.arguments import is_one, numbers_of

PLAIN = (dict, list, tuple, type(None))


class Moving(NamedTuple):
    """The arguments of f: `leaves` move, what is else in them stays.

    `rebuild` makes f's arguments of the leaves.
    """

    leaves: list
    names: list[str]
    rebuild: Callable[[Sequence], tuple]
    tree: PyTreeDef  # of the arguments to differentiate by
    chosen: Any
    places: list[int]  # of the leaves among all leaves of `chosen`
    args: tuple
    argnums: int | tuple[int, ...]

    def copies(self, leaves: Sequence | None = None) -> tuple:
        """f's arguments, copied: f may donate or change them."""
        return jax.tree.map(copied, self.rebuild(self.leaves if leaves is None else leaves))

    @property
    def size(self) -> int:
        return sum(math.prod(np.shape(leaf)) for leaf in self.leaves)

    def flat(self) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(np.ravel(host(leaf)) for leaf in self.leaves)])

    def split(self, row: np.ndarray) -> list:
        """The row as leaves of the kind, shape and dtype of `leaves`."""
        parts, start = [], 0
        for leaf in self.leaves:
            shape = tuple(getattr(leaf, "shape", ()))
            end = start + math.prod(shape)
            parts.append(_like(leaf, row[start:end].reshape(shape)))
            start = end
        return parts

    def widened(self) -> "Moving":
        """Everything in float64, where it is floating point."""
        wide = moving(jax.tree.map(_widened, self.args), self.argnums)
        return wide.only([wide.names.index(name) for name in self.names])

    def only(self, kept: list[int]) -> "Moving":
        """Some of the leaves move, the others stay as well."""

        def rebuild(leaves: Sequence) -> tuple:
            whole = list(self.leaves)
            for k, leaf in zip(kept, leaves, strict=True):
                whole[k] = leaf
            return self.rebuild(whole)

        return self._replace(
            leaves=[self.leaves[k] for k in kept],
            names=[self.names[k] for k in kept],
            places=[self.places[k] for k in kept],
            rebuild=rebuild,
        )


def moving(args: tuple, argnums: int | tuple[int, ...]) -> Moving:
    """The leaves of args[argnums] that move.

    In plain containers all of them, and each has to be real floating point; in a module (flax,
    equinox, or any other class) the floating point ones: its integers, keys and functions stay.
    """
    one, numbers = is_one(argnums), numbers_of(argnums)
    for index in numbers:
        if not -len(args) <= index < len(args):
            raise ValueError(f"argnums is {argnums}, f was given {len(args)} arguments")
        if _is_plain(jax.tree.structure(args[index])):
            named_leaves(args[index], f"argument {index}")
    chosen = args[numbers[0]] if one else tuple(args[k] for k in numbers)
    paths, tree = jax.tree_util.tree_flatten_with_path(chosen)
    places = [k for k, (_, leaf) in enumerate(paths) if dtype_name(leaf) in FLOATING]

    def rebuild(leaves: Sequence) -> tuple:
        whole = [leaf for _, leaf in paths]
        for k, leaf in zip(places, leaves, strict=True):
            whole[k] = leaf
        moved = jax.tree.unflatten(tree, whole)
        given = zip(numbers, [moved] if one else moved, strict=True)
        new = {k % len(args): value for k, value in given}
        return tuple(new.get(k, arg) for k, arg in enumerate(args))

    leaves = [paths[k][1] for k in places]
    names = [leaf_name(paths[k][0]) for k in places]
    return Moving(leaves, names, rebuild, tree, chosen, places, args, argnums)


def matched(moves: Moving, gradient: Any, given: bool) -> tuple[Moving, list[Named]]:
    """The leaves that the gradient is by, and the gradient's.

    A gradient has the argument's structure, or names its leaves as the argument does, as the State
    that flax's nnx.grad returns; lists of numbers stand for arrays. It may be more precise than the
    argument, as NumPy's float64 for float32 parameters, not less.

    Raises ValueError, naming the leaf, where structures, shapes or dtypes do not fit.
    """
    whose = ("the argument", "the gradient")
    try:
        found = moves.tree.flatten_up_to(gradient)
        found = [_array(found[k]) for k in moves.places]
    except ValueError:
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        by_name = {leaf_name(path): leaf for path, leaf in leaves}
        kept = [k for k, name in enumerate(moves.names) if name in by_name]
        if not kept or len(kept) < len(by_name):
            raise ValueError(structures(moves.chosen, gradient, whose)) from None
        moves = moves.only(kept)
        found = [by_name[name] for name in moves.names]
    pairs = []
    for name, own, leaf in zip(moves.names, moves.leaves, found, strict=True):
        r, c = named(name, own, whose[0]), named(name, leaf, whose[1])
        check_shape(r, c, whose)
        if given and r.dtype != c.dtype and eps(c.dtype) >= eps(r.dtype):
            raise ValueError(f"leaf {name}: {whose[0]} is {r.dtype}, {whose[1]} {c.dtype}")
        pairs.append(c._replace(dtype=r.dtype))
    return moves, pairs


def _is_plain(tree: PyTreeDef) -> bool:
    data = tree.node_data()
    if data is None:
        return True
    return issubclass(data[0], PLAIN) and all(map(_is_plain, tree.children()))


def _array(leaf: Any) -> Any:
    return np.asarray(leaf, np.float64) if isinstance(leaf, list | tuple) else leaf


def copied(leaf: Any) -> Any:
    """A copy of an array, which f may donate or write to."""
    if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jnp.array(leaf, copy=True)
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def bits(leaf: Any) -> bytes:
    """What an array or a key holds."""
    is_key = jnp.issubdtype(getattr(leaf, "dtype", np.int32), jax.dtypes.extended)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def _widened(leaf: Any) -> Any:
    """A float64 copy of a floating point array, anything else as it is."""
    if not hasattr(leaf, "dtype") or dtype_name(leaf) not in FLOATING:
        return leaf
    return leaf.double() if hasattr(leaf, "detach") else leaf.astype("float64")


def _like(leaf: Any, part: np.ndarray) -> Any:
    if hasattr(leaf, "detach"):
        return leaf.detach().new_tensor(part)
    if isinstance(leaf, jax.Array):
        return jnp.asarray(part, leaf.dtype)
    return part.astype(leaf.dtype) if hasattr(leaf, "dtype") else float(part)

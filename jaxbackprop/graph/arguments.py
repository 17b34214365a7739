"""What a gradient is asked of: a function, its arguments, and what it returns.

What cannot be differentiated is refused here, early, in one sentence, and in jax's terms.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

ARRAYS = (*get_args(jax.typing.ArrayLike), np.generic)


# --- the function ---


def check_function(f: Any) -> None:
    """TypeError unless it is a function that returns its result when it is called."""
    if not callable(f):
        found = repr(f) if isinstance(f, str | int | float | None) else type(f).__name__
        raise TypeError(f"a gradient is of a function, and this is {found}: expected a callable")
    for kind, holds in {
        "a generator function": inspect.isgeneratorfunction,
        "an async function": inspect.iscoroutinefunction,
        "an async generator function": inspect.isasyncgenfunction,
    }.items():
        if holds(f):
            raise TypeError(
                f"{f.__name__} is {kind}: a gradient is of a plain function, which returns a number"
            )


def named_as(f: Callable) -> Callable[[Callable], Any]:
    """The name and the arguments of f, for a function that is called as it is: what jax.jit's
    static_argnames and donate_argnames mean, and an error names."""
    return functools.wraps(f, ("__module__", "__name__", "__qualname__"), ())


# --- its arguments ---


def is_one(argnums: Any) -> bool:
    """Is it the number of one argument, and not a sequence of them?"""
    try:
        operator.index(argnums)
    except TypeError:
        return False
    return True


def places(
    argnums: int | Sequence[int],
    args: Sequence,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> tuple[int, ...]:
    """The places in args to differentiate by; TypeError unless what stands there can be."""
    chosen = numbers_of(argnums)
    for i in chosen:
        if not -len(args) <= i < len(args):
            given = f"{len(args)} positional argument{'' if len(args) == 1 else 's'}"
            raise TypeError(f"{argnums=} asks for argument {i}, but the call has {given}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(args[i]):
            kind = kind_of(leaf)
            name = f"argument {i}{jax.tree_util.keystr(path)}"
            if holomorphic and not jnp.issubdtype(kind, jnp.complexfloating):
                raise TypeError(f"holomorphic=True requires complex inputs, but {name} is {kind}")
            wrong = isinstance(kind, str) or not jnp.issubdtype(kind, jnp.inexact)
            if wrong and not (allow_int and _is_integer(kind)):
                raise TypeError(
                    "grad requires real or complex inputs (of an inexact dtype), but "
                    f"{name} is {kind}{_remedy(args[i], kind)}"
                )
    twice = [i for i in chosen if sum(i % len(args) == k % len(args) for k in chosen) > 1]
    if twice:
        raise TypeError(f"{argnums=} asks for argument {twice[0] % len(args)} twice")
    return chosen


def numbers_of(argnums: Any) -> tuple[int, ...]:
    """The numbers of the arguments, of which there may be one; TypeError for anything else."""
    try:
        return tuple(map(operator.index, (argnums,) if is_one(argnums) else argnums))
    except TypeError:
        raise TypeError(
            f"argnums is {argnums!r}, expected the number of an argument, or a tuple of numbers"
        ) from None


def check_arrays(args: Any) -> None:
    """TypeError where a leaf is neither a number nor an array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        kind = kind_of(leaf)
        if isinstance(kind, str):
            name = f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}"
            raise TypeError(f"a gradient is by arrays, but {name} is {kind}{_remedy(leaf, kind)}")


def kind_of(leaf: Any) -> Any:
    """The dtype of a number or an array, the name of its type for anything else."""
    if not isinstance(leaf, ARRAYS) and not hasattr(leaf, "__jax_array__"):
        return type(leaf).__name__
    dtype: Any = getattr(leaf, "dtype", None)
    if dtype == jax.dtypes.float0:
        return "float0"
    if isinstance(leaf, np.ndarray | np.generic) and dtype.kind in "OSUMm":
        return f"{type(leaf).__name__} of {dtype.name}"
    return jnp.result_type(leaf)


def _is_integer(kind: Any) -> bool:
    return not isinstance(kind, str) and (
        jnp.issubdtype(kind, jnp.integer) or jnp.issubdtype(kind, jnp.bool_)
    )


def _remedy(argument: Any, kind: Any) -> str:
    """What a person with such an argument does."""
    roots = {cls.__module__.partition(".")[0] for cls in type(argument).__mro__}
    if "equinox" in roots:
        return (
            ": split the module by equinox.partition(module, equinox.is_inexact_array), "
            "differentiate by the first part, and equinox.combine them inside the function"
        )
    if "flax" in roots and isinstance(kind, str) and kind == type(argument).__name__:
        return ": it holds no numbers; differentiate by the variables that its init returns"
    if "flax" in roots:
        return (
            ": split the model by graph, params, rest = nnx.split(model, nnx.Param, ...), "
            "differentiate by params, and nnx.merge them inside the function"
        )
    if kind == "ShapeDtypeStruct":
        return ": it has no numbers; for shapes alone ask jax.eval_shape(grad(f), ...)"
    if _is_integer(kind):
        return "; pass allow_int=True for a gradient of dtype float0 there"
    known = not isinstance(kind, str) or kind == "float0"
    return "" if known else "; make it an array, or close over it"


# --- what it returns ---


def only_arrays(out: Any) -> Any:
    """The output as it is; TypeError where a leaf is neither a number nor an array."""
    for leaf in jax.tree.leaves(out):
        kind = kind_of(leaf)
        if isinstance(kind, str):
            raise TypeError(
                f"a differentiated function returns arrays, and this one returns {kind}: return "
                "what else there is as aux, by has_aux=True"
            )
    return out


def check_pair(out: Any) -> None:
    if not (isinstance(out, tuple) and len(out) == 2):
        found = f"a tuple of {len(out)}" if isinstance(out, tuple) else _told(out)
        raise TypeError(
            "has_aux=True is for a function that returns a pair (value, aux), "
            f"and this one returns {found}"
        )


def _told(out: Any) -> str:
    return "an array" if isinstance(out, jax.Array | np.ndarray) else type(out).__name__


def check_scalar(value: Any, holomorphic: bool = False) -> None:
    if value is None:
        raise TypeError(
            "gradient only defined for scalar-output functions, but the function returned None: "
            "has it a return statement?"
        )
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)) or jnp.ndim(value) != 0:
        raise TypeError(
            f"gradient only defined for scalar-output functions, "
            f"got the output shape {jax.tree.map(jnp.shape, value)}"
        )
    kind = jnp.result_type(value)
    is_complex = jnp.issubdtype(kind, jnp.complexfloating)
    if holomorphic and not is_complex:
        raise TypeError(f"holomorphic=True requires a complex output, the output is {kind}")
    if not holomorphic and not jnp.issubdtype(kind, jnp.floating):
        hint = ": holomorphic=True is for those of complex functions" if is_complex else ""
        raise TypeError(f"gradient only defined for real outputs, the output is {kind}{hint}")

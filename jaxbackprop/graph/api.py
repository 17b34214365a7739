"""`grad`, `value_and_grad` and `vjp` in the form of jax's own, by the reverse walk."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.checkpoint.descriptions import Description
from jaxbackprop.graph import budget
from jaxbackprop.graph.arguments import (
    check_arrays,
    check_function,
    check_pair,
    check_scalar,
    is_one,
    kind_of,
    named_as,
    only_arrays,
    places,
)
from jaxbackprop.graph.halves import through
from jaxbackprop.graph.recording import run
from jaxbackprop.graph.rules.table import placed
from jaxbackprop.graph.walk import is_real

P = ParamSpec("P")
T = TypeVar("T")
Aux = TypeVar("Aux")


@overload
def grad(
    f: Callable[P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    checkpoint: Description | str | None = None,
) -> Callable[P, Any]: ...
@overload
def grad(
    f: Callable[P, tuple[Any, Aux]],
    argnums: int | Sequence[int] = 0,
    *,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    checkpoint: Description | str | None = None,
) -> Callable[P, tuple[Any, Aux]]: ...
@overload
def grad(
    f: Callable[P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    checkpoint: Description | str | None = None,
) -> Callable[P, Any]: ...
def grad(
    f: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    checkpoint: Description | str | None = None,
) -> Callable[..., Any]:
    """A function with f's arguments that returns the gradient of f by args[argnums].

    As jax.grad: f returns a real scalar, or (scalar, aux) with `has_aux`; the arguments are pytrees
    of real or complex arrays, of integers too with `allow_int` (their gradient is of dtype float0),
    of complex ones only with `holomorphic`, where f returns a complex scalar. f runs once, on
    values: outside of jit it may look at them. Raises TypeError in jax's terms otherwise, and
    `UnsupportedPrimitive` where the graph has an operation without a rule.

    With `checkpoint=within(bytes)` the program needs at most so many bytes of temporary memory, and
    what does not fit is computed again; f is then traced without values, under jit. Raises
    ValueError where no plan is small enough, and under vmap.
    """
    both: Callable = value_and_grad(f, argnums, has_aux, holomorphic, allow_int, checkpoint)

    @named_as(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return gradient


def value_and_grad(
    f: Callable[P, T],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    checkpoint: Description | str | None = None,
) -> Callable[P, tuple[T, Any]]:
    """As `grad`, and the value besides: (value, gradient), or ((value, aux), gradient)."""

    check_function(f)
    untyped: Callable = f
    bytes = budget.asked_bytes(checkpoint)

    @named_as(f)
    def value_and_gradient(*args: P.args, **kwargs: P.kwargs) -> tuple[T, Any]:
        chosen = places(argnums, args, holomorphic, allow_int)

        def of_chosen(*primals):
            full = list(args)
            for i, primal in zip(chosen, primals, strict=True):
                full[i] = primal
            return untyped(*full, **kwargs)

        primals = tuple(args[i] for i in chosen)
        value, pullback, aux = _vjp(of_chosen, primals, has_aux, bytes)
        check_scalar(value, holomorphic)
        gradients = pullback(jnp.ones_like(value))
        out: Any = (value, aux) if has_aux else value
        return out, gradients[0] if is_one(argnums) else gradients

    return value_and_gradient if bytes is None else budget.compiled(value_and_gradient, bytes)


@overload
def vjp(
    f: Callable[..., T],
    *primals: Any,
    has_aux: Literal[False] = False,
    checkpoint: Description | str | None = None,
) -> tuple[T, Callable[[T], tuple[Any, ...]]]: ...
@overload
def vjp(
    f: Callable[..., tuple[T, Aux]],
    *primals: Any,
    has_aux: Literal[True],
    checkpoint: Description | str | None = None,
) -> tuple[T, Callable[[T], tuple[Any, ...]], Aux]: ...
def vjp(
    f: Callable,
    *primals: Any,
    has_aux: bool = False,
    checkpoint: Description | str | None = None,
) -> Any:
    """(f(*primals), pullback): the pullback takes a cotangent of the form of the output and returns
    a tuple of cotangents, one a primal. Integer leaves of the primals get float0 zeros, as in jax.

    With `has_aux` f returns (output, aux), and aux is a third result. `checkpoint` is as in `grad`,
    for the two ways as one program: call both under one jax.jit. Raises TypeError where a
    cotangent's structure, shape or dtype is not the output's.
    """
    check_function(f)
    check_arrays(primals)
    out, pullback, aux = _vjp(f, primals, has_aux, budget.asked_bytes(checkpoint))

    def checked(ct: Any) -> tuple:
        if jax.tree.structure(ct) != jax.tree.structure(out):
            raise TypeError(
                f"the cotangent has the structure {jax.tree.structure(ct)}, "
                f"the output {jax.tree.structure(out)}"
            )
        for (path, c), o in zip(
            jax.tree_util.tree_leaves_with_path(ct), jax.tree.leaves(out), strict=True
        ):
            kind, shape = kind_of(c), getattr(c, "shape", ())
            if shape != jnp.shape(o) or (is_real(o) and kind != o.dtype):
                raise TypeError(
                    f"the cotangent{jax.tree_util.keystr(path)} is "
                    f"{kind}{list(shape)}, the output {o.dtype}{list(o.shape)}"
                )
        return pullback(ct)

    return (out, checked, aux) if has_aux else (out, checked)


def _vjp(
    f: Callable, primals: tuple, has_aux: bool = False, bytes: int | None = None
) -> tuple[Any, Callable, Any]:
    """(output, pullback, aux). Of the aux nothing is differentiated."""
    leaves, tree = jax.tree.flatten(primals)
    leaves = [jnp.asarray(leaf) for leaf in leaves]

    def of_leaves(*leaves):
        out = f(*jax.tree.unflatten(tree, leaves))
        if has_aux:
            check_pair(out)
        main, aux = out if has_aux else (out, None)
        return only_arrays(main), aux

    if bytes is None:
        main, aux, tape = run(of_leaves, leaves)
        walk_back = through(tape)[1]
    else:
        main, aux, walk_back = budget.run(of_leaves, leaves, bytes)
    out_tree = jax.tree.structure(main)

    def pullback(ct: Any) -> tuple:
        found = walk_back(out_tree.flatten_up_to(ct))
        return jax.tree.unflatten(
            tree, [_gradient(leaf, ct) for leaf, ct in zip(leaves, found, strict=True)]
        )

    return main, pullback, aux


def _gradient(leaf: jax.Array, ct: Any) -> Any:
    """The gradient by a leaf is weakly typed as the leaf is. Where nothing depends on it, it is
    zero; by an integer there is none (float0)."""
    if not is_real(leaf):
        return jnp.zeros(leaf.shape, jax.dtypes.float0)
    if ct is None:
        return placed(jnp.zeros_like(leaf), jax.typeof(leaf))
    weak = jax.typeof(leaf).weak_type
    if ct.dtype != leaf.dtype or jax.typeof(ct).weak_type == weak:
        return ct
    kind = {"new_dtype": ct.dtype, "weak_type": weak, "sharding": None}
    return lax.convert_element_type_p.bind(ct, **kind)  # convert_element_type makes nothing weak

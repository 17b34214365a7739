"""`grad`, `value_and_grad` and `vjp` in the form of jax's own, by the reverse walk."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbackprop.graph.walk import backward, forward, is_real


def grad(f: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable:
    """A function with f's arguments that returns the gradient of f by args[argnums].

    As jax.grad: f returns a real scalar, or (scalar, aux) with `has_aux`; the arguments are pytrees
    of real arrays. Raises TypeError in jax's terms otherwise, and `UnsupportedPrimitive` where the
    graph has an operation without a rule.
    """

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, gradients = value_and_grad(f, argnums, has_aux)(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return gradient


def value_and_grad(
    f: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable:
    """As `grad`, and the value besides: (value, gradient), or ((value, aux), gradient)."""

    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        chosen = places(argnums, args)
        primals = tuple(args[i] for i in chosen)

        def of_chosen(*primals):
            full = list(args)
            for i, primal in zip(chosen, primals, strict=True):
                full[i] = primal
            return f(*full, **kwargs)

        out, pullback = _vjp(of_chosen, primals)
        if has_aux:
            check_pair(out)
        value = out[0] if has_aux else out
        check_scalar(value)
        seed = jnp.ones((), value.dtype)
        cts = jax.tree.map(lambda leaf: None, out)
        cts = (seed, cts[1]) if has_aux else seed
        gradients = pullback(cts)
        return out, gradients[0] if isinstance(argnums, int) else gradients

    return value_and_gradient


def vjp(f: Callable, *primals: Any) -> tuple[Any, Callable]:
    """(f(*primals), pullback): the pullback takes a cotangent of the form of the output and returns
    a tuple of cotangents, one a primal. Integer leaves of the primals get float0 zeros, as in jax.

    Raises TypeError where a cotangent's structure, shape or dtype is not the output's.
    """
    out, pullback = _vjp(f, primals)

    def checked(ct: Any) -> tuple:
        if jax.tree.structure(ct) != jax.tree.structure(out):
            raise TypeError(
                f"the cotangent has the structure {jax.tree.structure(ct)}, "
                f"the output {jax.tree.structure(out)}"
            )
        for (path, c), o in zip(
            jax.tree_util.tree_leaves_with_path(ct), jax.tree.leaves(out), strict=True
        ):
            kind = _kind(c)
            shape = () if isinstance(kind, str) else jnp.shape(c)
            if shape != jnp.shape(o) or (is_real(o) and kind != o.dtype):
                raise TypeError(
                    f"the cotangent{jax.tree_util.keystr(path)} is "
                    f"{kind}{list(shape)}, the output {o.dtype}{list(o.shape)}"
                )
        return pullback(ct)

    return out, checked


def _vjp(f: Callable, primals: tuple) -> tuple[Any, Callable]:
    leaves, tree = jax.tree.flatten(primals)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    closed, shape = jax.make_jaxpr(
        lambda *leaves: f(*jax.tree.unflatten(tree, leaves)), return_shape=True
    )(*leaves)
    tape = forward(closed.jaxpr, closed.consts, leaves, [True] * len(leaves))
    out_tree = jax.tree.structure(shape)

    def pullback(ct: Any) -> tuple:
        cts = out_tree.flatten_up_to(ct)
        cts = [
            ct if ct is not None and active else None
            for ct, active in zip(cts, tape.active_outputs, strict=True)
        ]
        return jax.tree.unflatten(
            tree,
            [_gradient(leaf, ct) for leaf, ct in zip(leaves, backward(tape, cts), strict=True)],
        )

    return jax.tree.unflatten(out_tree, tape.outputs), pullback


def _gradient(leaf: jax.Array, ct: Any) -> Any:
    """A leaf that nothing depends on has the gradient zero; an integer one has none (float0)."""
    if not is_real(leaf):
        return jnp.zeros(leaf.shape, jax.dtypes.float0)
    return jnp.zeros_like(leaf) if ct is None else ct


def places(argnums: int | Sequence[int], args: Sequence) -> tuple[int, ...]:
    """The places in args to differentiate by; TypeError unless real arrays stand there."""
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for i in chosen:
        if not -len(args) <= i < len(args):
            given = f"{len(args)} positional argument{'' if len(args) == 1 else 's'}"
            raise TypeError(f"{argnums=} asks for argument {i}, but the call has {given}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(args[i]):
            kind = _kind(leaf)
            if isinstance(kind, str) or not jnp.issubdtype(kind, jnp.floating):
                raise TypeError(
                    f"grad requires real inputs (of a floating dtype), but "
                    f"argument {i}{jax.tree_util.keystr(path)} is {kind}"
                )
    return chosen


def _kind(leaf: Any) -> Any:
    """The dtype of a number or an array, the name of its type for anything else."""
    known = isinstance(leaf, (int, float, complex)) or hasattr(leaf, "dtype")
    return jnp.result_type(leaf) if known else type(leaf).__name__


def check_pair(out: Any) -> None:
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"has_aux=True is for a function that returns a pair (value, aux), "
            f"but the output is {jax.tree.structure(out)}"
        )


def check_scalar(value: Any) -> None:
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)) or jnp.ndim(value) != 0:
        raise TypeError(
            f"gradient only defined for scalar-output functions, "
            f"got the output shape {jax.tree.map(jnp.shape, value)}"
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"gradient only defined for real outputs, the output is {jnp.result_type(value)}"
        )

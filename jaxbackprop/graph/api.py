"""`grad`, `value_and_grad` and `vjp` in the form of jax's own, by the reverse walk."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.checkpoint.descriptions import Description
from jaxbackprop.graph import budget
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

    untyped: Callable = f
    bytes = budget.asked_bytes(checkpoint)

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
        return out, gradients[0] if isinstance(argnums, int) else gradients

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
            kind = _kind(c)
            shape = () if isinstance(kind, str) else jnp.shape(c)
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
        return main, aux

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


def places(
    argnums: int | Sequence[int],
    args: Sequence,
    holomorphic: bool = False,
    allow_int: bool = False,
    checkpoint: Description | str | None = None,
) -> tuple[int, ...]:
    """The places in args to differentiate by; TypeError unless what stands there can be."""
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for i in chosen:
        if not -len(args) <= i < len(args):
            given = f"{len(args)} positional argument{'' if len(args) == 1 else 's'}"
            raise TypeError(f"{argnums=} asks for argument {i}, but the call has {given}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(args[i]):
            kind = _kind(leaf)
            name = f"argument {i}{jax.tree_util.keystr(path)}"
            if holomorphic and not jnp.issubdtype(kind, jnp.complexfloating):
                raise TypeError(f"holomorphic=True requires complex inputs, but {name} is {kind}")
            wrong = isinstance(kind, str) or not jnp.issubdtype(kind, jnp.inexact)
            if wrong and not (allow_int and _is_integer(kind)):
                raise TypeError(
                    "grad requires real or complex inputs (of an inexact dtype), but "
                    f"{name} is {kind}{_remedy(args[i], kind)}"
                )
    return chosen


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
    if "flax" in roots:
        return (
            ": split the model by graph, params, rest = nnx.split(model, nnx.Param, ...), "
            "differentiate by params, and nnx.merge them inside the function"
        )
    return "; pass allow_int=True for a gradient of dtype float0 there" if _is_integer(kind) else ""


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
    if holomorphic and not jnp.issubdtype(kind, jnp.complexfloating):
        raise TypeError(f"holomorphic=True requires a complex output, the output is {kind}")
    if not holomorphic and not jnp.issubdtype(kind, jnp.floating):
        hint = ": holomorphic=True is for those of complex functions" if kind.kind == "c" else ""
        raise TypeError(f"gradient only defined for real outputs, the output is {kind}{hint}")

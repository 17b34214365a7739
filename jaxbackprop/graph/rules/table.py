"""The table of local gradients: one rule a primitive.

A rule is a function `rule(cts, outs, *inputs, **params)` of the cotangents of an equation's
outputs, the outputs and inputs themselves, and the primitive's parameters. It returns one entry an
input: a function of no arguments that computes the input's contribution, or None where the output
does not change with the input smoothly. The walk calls only the entries that it needs.
"""

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from jaxbackprop.graph.lines import where

Contribution = Callable[[], Array] | None
Rule = Callable[..., Sequence[Contribution]]

RULES: dict[str, Rule] = {}
ENTRYWISE = ("elementwise", "selection", "table")  # modules of rules; `local_gradient` stands here
WITHOUT_ZEROS: set[str] = set()  # their rules read from a cotangent that it is zero: it is None

# The gradient is zero wherever it exists: their outputs are integers, truth values or steps.
# (floor and its kin are flat between their steps; a random bit depends on no real number.)
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to", "is_finite"}
LOGIC = {"and", "or", "not", "xor", "reduce_and", "reduce_or", "reduce_xor", "population_count"}
LOGIC |= {"clz", "mulhi", "shift_left", "shift_right_logical", "shift_right_arithmetic"}
STEPS = {"floor", "ceil", "round", "argmax", "argmin", "stop_gradient"}
RANDOM = {"random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in"}
RANDOM |= {"random_split", "threefry2x32"}
CONSTANTS = {"iota", "empty", "empty2", "axis_index", "create_token", "bitcast_convert_type"}
FLAT = frozenset(COMPARISONS | LOGIC | STEPS | RANDOM | CONSTANTS)


class UnsupportedPrimitive(NotImplementedError):
    """The graph has an operation that no rule covers: it is named, never taken for zero.

    The walk adds the equations that it stands in, outermost first: their lines say where.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.equations: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{super().__str__()} ({where(self.equations)})"


def rule(*names: str, zeros: bool = True) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under the names of its primitives.

    zeros: a cotangent that is zero is an array of zeros; False: it is None.
    """

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
            if not zeros:
                WITHOUT_ZEROS.add(name)
        return function

    return enter


def local_gradient(*names: str) -> Callable[[Callable[..., Sequence[Any]]], Rule]:
    """Enter an elementwise operation by its partial derivatives.

    The function takes the output and the inputs, and gives for each input the function that
    computes ∂out/∂input; the chain rule, ct · ∂out/∂input, is the same for all of them. The
    parameter `accuracy` says how the output is computed, not what it is: no partial wants it.
    """

    def enter(partials: Callable[..., Sequence[Any]]) -> Rule:
        def multiply(cts, outs, *inputs, accuracy=None, **params):
            (ct,), (out,) = cts, outs
            return tuple(
                None if partial is None else (lambda partial=partial: ct * partial())
                for partial in partials(out, *inputs, **params)
            )

        return rule(*names)(multiply)

    return enter


def entrywise(equation: Any) -> bool:
    """Does each entry of the output depend on the same entry of the operands alone?"""
    rule = RULES.get(equation.primitive.name)
    family = rule.__module__.rpartition(".")[2] if rule else ""
    shapes = {jnp.shape(v.aval) for v in (*equation.invars, *equation.outvars)}
    return family in ENTRYWISE and len(equation.outvars) == 1 and len(shapes - {()}) < 2


def cast(contribution: Any, dtype: Any) -> Any:
    """A contribution in the dtype of its input: of a complex one, a real input gets the real part.

    (A cotangent c of z is paired with it as Re(c z), as in JAX: for a real z that is Re(c) z.)
    """
    is_complex = jnp.issubdtype(contribution.dtype, jnp.complexfloating)
    if is_complex and not jnp.issubdtype(dtype, jnp.complexfloating):
        contribution = lax.real(contribution)
    return lax.convert_element_type(contribution, dtype)


def wide(dtype: Any) -> Any:
    """The dtype to sum in: float32 at least, also of 8 bits, which jax does not promote."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")


def explicit_sharding(aval: Any) -> Any:
    """How a value is divided, where its type says so (on a mesh with explicit axes), else None."""
    return aval.sharding if AxisType.Explicit in aval.sharding.mesh.axis_types else None


def placed(value: Any, aval: Any) -> Any:
    """A cotangent is divided as the type of its value says."""
    home = explicit_sharding(aval)
    moves = home is not None and jax.typeof(value).sharding != home
    return jax.sharding.reshard(value, home) if moves else value


def undivided(value: Any, axes: Sequence[SupportsIndex]) -> Any:
    """A value of which each device has these axes whole."""
    home = explicit_sharding(jax.typeof(value))
    if home is None:
        return value
    spec = (None if d in axes else name for d, name in enumerate(home.spec))
    return jax.sharding.reshard(value, home.update(spec=PartitionSpec(*spec)))


def fit(contribution: Any, x: Any) -> Any:
    """A contribution in the form of its input: where the operand was stretched, it sums."""
    return placed(_shaped(contribution, x), jax.typeof(x))


def inner(a: Any, b: Any, x: Any) -> Any:
    """fit(a b, x), where b may be stretched to a, as a matrix product: of a sum of products XLA
    makes a slow loop on a CPU where an axis has length 1, as in the attention of flax."""
    if explicit_sharding(jax.typeof(a)) is not None:
        return fit(a * b, x)
    b = jnp.broadcast_to(b, jnp.shape(a))
    kept = [d for d, n in enumerate(jnp.shape(x)) if n == jnp.shape(a)[d]]
    over = [d for d in range(jnp.ndim(a)) if d not in kept]
    sums = lax.dot_general(a, b, ((over, over), (kept, kept)), precision=lax.Precision.HIGHEST)
    return lax.reshape(sums, jnp.shape(x))


def _shaped(contribution: Any, x: Any) -> Any:
    shape = jnp.shape(x)
    if jnp.shape(contribution) == shape:
        return contribution
    if shape == ():
        return jnp.sum(contribution)
    stretched = [
        d for d, n in enumerate(shape) if n == 1 and jnp.shape(contribution)[d : d + 1] != (1,)
    ]
    if jnp.ndim(contribution) == len(shape):
        contribution = jnp.sum(contribution, axis=tuple(stretched), keepdims=True)
    return jnp.broadcast_to(contribution, shape)

"""The backward pass over a computation graph: forward in order, backward in reverse.

JAX traces a function to a *jaxpr*: a list of equations in topological order, each a primitive
operation on variables. `forward` evaluates it and keeps a tape of the operations that depend on a
differentiated input. `backward` walks the tape in reverse: at each operation the cotangent of the
output is multiplied by the local gradients (`jaxbackprop.graph.rules`), and where a variable
is used several times its contributions are summed: the sum over paths.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import Literal

from jaxbackprop.graph.foreign import is_foreign
from jaxbackprop.graph.lines import frames
from jaxbackprop.graph.rules import FLAT, RULES, UnsupportedPrimitive
from jaxbackprop.graph.rules.refused import MUTABLE, refusal
from jaxbackprop.graph.rules.table import WITHOUT_ZEROS, fit, placed


class Node(NamedTuple):
    """One operation on the tape: the equation, its values, and which inputs want a gradient.

    `pull(cts)` turns the cotangents of the outputs into those of the inputs.
    """

    equation: Any
    inputs: list
    outputs: list
    active: list[bool]
    pull: Callable[[list], list]


class Ends(NamedTuple):
    """The variables that a graph starts from and ends in."""

    invars: Sequence
    outvars: Sequence


class Tape(NamedTuple):
    """A forward pass: its nodes in order, and the values it returned."""

    jaxpr: Any  # or its ends: no more is asked of it
    nodes: list[Node]
    outputs: list
    active_outputs: list[bool]


def add(a: Any, b: Any) -> Any:
    """Their sum, in the wider dtype: a rule of one's own may return another than its input's."""
    if getattr(a, "dtype", b) != getattr(b, "dtype", a):
        dtype = jnp.promote_types(a.dtype, b.dtype)
        a, b = a.astype(dtype), b.astype(dtype)
    return a + b


class Cotangents:
    """Cotangents by variable: a write sums, a read pops."""

    def __init__(self) -> None:
        self.by_variable = {}

    def write(self, variable: Any, ct: Any) -> None:
        if ct is not None and not isinstance(variable, Literal):
            held = self.by_variable.get(variable)
            self.by_variable[variable] = ct if held is None else add(held, ct)

    def read(self, variable: Any) -> Any:
        return self.by_variable.pop(variable, None)


WIDE = (np.dtype("float64"), np.dtype("complex128"))

# How operations that contain a graph of their own are recorded; filled by `structure`.
Recorder = Callable[[Any, list, list[bool]], tuple[list, Callable[[list], list]]]
STRUCTURE: dict[str, Recorder] = {}
# Which of their outputs follow the active inputs; of any other operation all do.
FOLLOWS: dict[str, Callable[[Any, list[bool]], Sequence[bool]]] = {}


def forward(jaxpr: Any, consts: Sequence, args: Sequence, active: Sequence[bool]) -> Tape:
    """Evaluate the jaxpr at args and tape what depends on the active ones."""
    variables = [*jaxpr.constvars, *jaxpr.invars]
    values = dict(zip(variables, (*consts, *args), strict=True))
    invars = variables[len(consts) :]
    wanted = {v for v, a in zip(invars, active, strict=True) if a and is_real(v.aval)}

    def read(v):
        return v.val if isinstance(v, Literal) else values[v]

    def depends(v):
        return not isinstance(v, Literal) and v in wanted

    nodes = []
    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        flags = [depends(v) for v in equation.invars]
        if any(flags) and not is_flat(equation):
            outputs, pull = record(equation, inputs, flags)
            nodes.append(Node(equation, inputs, outputs, flags, pull))
            wanted.update(following(equation, flags))
        else:
            outputs = evaluate(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    outputs = [as_array(read(v)) for v in jaxpr.outvars]
    return Tape(Ends(invars, jaxpr.outvars), nodes, outputs, [depends(v) for v in jaxpr.outvars])


def backward(tape: Tape, cts: Sequence, observe: Callable | None = None) -> list:
    """The cotangents of the jaxpr's inputs, from those of its outputs (None: zero).

    `observe(node, cts, contributions)` sees each step of the walk.
    """
    cotangents = Cotangents()
    for v, ct in zip(tape.jaxpr.outvars, cts, strict=True):
        cotangents.write(v, ct)
    for node in reversed(tape.nodes):
        cts = [cotangents.read(v) for v in node.equation.outvars]
        if all(ct is None for ct in cts):
            continue
        contributions = node.pull(cts)
        if observe is not None:
            observe(node, cts, contributions)
        with context(node.equation):
            for v, contribution in zip(node.equation.invars, contributions, strict=True):
                cotangents.write(v, contribution)
    return [cotangents.by_variable.get(v) for v in tape.jaxpr.invars]


def record(
    equation: Any, inputs: list, active: list[bool], around: Sequence = ()
) -> tuple[list, Callable]:
    """Evaluate one equation, and say how its cotangents are pulled back.

    What it refuses, on either way, is told with the lines of the equation and of those `around` it.
    """
    with _located((*around, equation)):
        outputs, pull = _recorder(equation.primitive)(equation, inputs, active)

    def located_pull(cts):
        with _located((*around, equation)):
            return pull(cts)

    return outputs, located_pull


@contextlib.contextmanager
def context(equation: Any) -> Iterator[None]:
    """What f said of the equation; and 64 bits, where f has them by `jax.enable_x64(True)`."""
    types = (getattr(v, "aval", v) for v in (*equation.invars, *equation.outvars))
    wide = any(getattr(t, "dtype", None) in WIDE for t in types)
    switch = wide and not jax.config.jax_enable_x64  # type: ignore[attr-defined]
    with equation.ctx.manager, jax.enable_x64(True) if switch else contextlib.nullcontext():
        yield


def from_line(equation: Any) -> contextlib.AbstractContextManager:
    """What is evaluated for an equation, on either way, comes from its line of the user's code;
    inside of a jitted function of a library, from the line that calls that."""
    traceback = equation.source_info.traceback
    if traceback is None or not _is_of_a_line(traceback):
        return contextlib.nullcontext()
    return source_info_util.user_context(traceback)


@functools.lru_cache(maxsize=4096)
def _is_of_a_line(traceback: Any) -> bool:
    return bool(frames(traceback))


@contextlib.contextmanager
def _located(equations: tuple) -> Iterator[None]:
    try:
        with from_line(equations[-1]), context(equations[-1]):
            yield
    except UnsupportedPrimitive as error:
        error.equations = (*equations, *error.equations)
        raise


def following(equation: Any, active: list[bool]) -> list:
    """The outputs that want a gradient, since an active input changes them."""
    if _holds_a_mutable_array(equation):
        error = UnsupportedPrimitive(refusal(equation.primitive.name, MUTABLE))
        error.equations = (equation,)
        raise error
    follows = FOLLOWS.get(_kind(equation.primitive))
    flags = follows(equation, active) if follows else [True] * len(equation.outvars)
    return [v for v, flag in zip(equation.outvars, flags, strict=True) if flag and is_real(v.aval)]


def _recorder(primitive: Any) -> Recorder:
    return STRUCTURE.get(_kind(primitive), _by_rule)


def _kind(primitive: Any) -> str:
    """An operation that another library made may have a name of jax's: it is none of these."""
    return "foreign" if is_foreign(primitive) else primitive.name


def _by_rule(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    name = equation.primitive.name
    if name not in RULES:
        raise UnsupportedPrimitive(refusal(name))
    outputs = evaluate(equation, inputs)

    def pull(cts):
        rule = RULES[name]
        if name not in WITHOUT_ZEROS:
            cts = [
                zeros(v.aval) if ct is None else ct
                for v, ct in zip(equation.outvars, cts, strict=True)
            ]
        contributions = rule(tuple(cts), tuple(outputs), *inputs, **equation.params)
        return [
            fit(contribution(), x) if wanted and contribution is not None else None
            for x, wanted, contribution in zip(inputs, active, contributions, strict=True)
        ]

    return outputs, pull


def evaluate(equation: Any, inputs: list) -> list:
    """Apply an equation's primitive."""
    params = equation.primitive.get_bind_params(equation.params)
    with context(equation), from_line(equation):
        outputs = equation.primitive.bind(*inputs, **params)
    outputs = list(outputs) if equation.primitive.multiple_results else [outputs]
    return list(map(as_array, outputs))


def as_array(x: Any) -> Any:
    """A number that jax wrote into a graph, with its type, leaves it as an array. A truth value
    stays Python's: equinox looks at some."""
    return jnp.asarray(x) if hasattr(x, "dtype") and not hasattr(x, "shape") else x


def is_real(aval: Any) -> bool:
    """Does a value of this type have a gradient? Integers and truth values have none."""
    return jnp.issubdtype(getattr(aval, "dtype", jnp.int32), jnp.inexact)


def is_flat(equation: Any) -> bool:
    """Does no gradient pass? Prints, checks and callbacks without results are done and passed by;
    but what writes to a mutable array is no such effect."""
    if _holds_a_mutable_array(equation):
        return False
    name, outvars = equation.primitive.name, equation.outvars
    discrete = all(hasattr(v.aval, "dtype") and not is_real(v.aval) for v in outvars)
    return name in FLAT or (name not in STRUCTURE and discrete)


def _holds_a_mutable_array(equation: Any) -> bool:
    """What is written there does not come out of the equation, so the walk would not follow it.
    A function with a rule of its own says what follows."""
    is_ruled = equation.primitive.name in ("custom_jvp_call", "custom_vjp_call")
    return not is_ruled and any(hasattr(v.aval, "inner_aval") for v in equation.invars)


def zeros(aval: Any) -> Any:
    """The zero of a type, divided over devices as the type says."""
    if not is_real(aval):
        return None
    zero, varying = jnp.zeros(aval.shape, aval.dtype), tuple(sorted(aval.mat.varying))
    return placed(lax.pcast(zero, varying, to="varying") if varying else zero, aval)

"""A traced function evaluated in float64: the same graph and the same random numbers, more digits.

Asking f for a float64 copy asks for another function wherever f draws random numbers or decides by
thresholds: jax draws other numbers in float64, and a comparison of rounded numbers may turn. So the
graph that f has on its own arguments is walked with float64 numbers in it. Random bits are integers
and stay what they are. What the graph stops, and where asked what it decides, is held as it is in
its own precision at the arguments themselves.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from jaxbackprop.check.contents import graphs_in, made_of
from jaxbackprop.check.deciding import Decisions, as_decided, is_decision
from jaxbackprop.check.precision import is_inexact, wide, wide_type
from jaxbackprop.check.shaking import EXACT, shake
from jaxbackprop.graph.dependence import lengths, open_jaxpr, parts
from jaxbackprop.graph.loop import going_on

SILENT = {"debug_callback", "debug_print", "check"}  # said once, not at each of a thousand points
CALLBACKS = {"pure_callback", "io_callback"}  # Python's functions, which may draw
# Not to be widened:
OWN = {"bitcast_convert_type", "random_gamma", "pallas_call", "shard_map"} | CALLBACKS
HELD = {"stop_gradient", "random_gamma"}
REFINED = 6  # times: each gains three digits at steps of 1e-3


class Numbers(NamedTuple):
    """A number in float64 that moves; as the graph itself has it at the arguments, None where
    nothing is held; and what decides, None where that is the number: in float64 at the arguments,
    or where nothing is shaken."""

    high: Any
    low: Any
    still: Any


class Held(NamedTuple):
    """What is held at the arguments: what f stops or draws by them, and what it decides."""

    stopped: bool
    decided: Decisions
    shaken: Iterator[int] | None  # a number for each operation: its results are rounded otherwise,
    draw: Any = None  # in one of DRAWS ways

    @property
    def anything(self) -> bool:
        return self.stopped or self.decided in (Decisions.TURNED, Decisions.ALL)

    @property
    def still(self) -> bool:
        return self.decided in (Decisions.TURNED, Decisions.CALM)


def evaluate_wide(
    closed: ClosedJaxpr,
    args: Sequence,
    at: Sequence,
    decided: Decisions = Decisions.NONE,
    shaken: Any = None,
) -> list:
    """The outputs of the graph at float64 args; what is held is held at `at`, the own arguments.

    `shaken`: every result is off by an eps of its own type, up or down, as if it had been rounded;
    in which of DRAWS ways.
    To be traced or run with float64 enabled.
    """
    held = Held(
        bool(made_of(closed) & HELD), decided, None if shaken is None else itertools.count(), shaken
    )
    numbers = [_numbers(high, low, held) for high, low in zip(args, at, strict=True)]
    return [given.high for given in _run(closed, numbers, held)]


def _numbers(high: Any, low: Any, held: Held) -> Numbers:
    """`low` is what the graph itself has at the arguments."""
    still = {Decisions.TURNED: low, Decisions.CALM: high}.get(held.decided)
    return Numbers(high, low if held.anything else None, wide(still))


def _run(inner: Any, args: Sequence[Numbers], held: Held) -> list[Numbers]:
    jaxpr, consts = open_jaxpr(inner)

    def fixed(x):
        return _numbers(wide(x), x, held)

    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(fixed, consts), *args), strict=True))

    def read(v: Any) -> Numbers:
        aval: Any = v.aval
        return fixed(np.asarray(v.val, aval.dtype)) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        name = equation.primitive.name
        make = STRUCTURE.get(name, _operation)
        found = make(equation, [read(v) for v in equation.invars], held)
        values.update(zip(equation.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _operation(equation: Any, inputs: list[Numbers], held: Held) -> list[Numbers]:
    if equation.primitive.name in SILENT:
        return []
    lows = stills = [None] * len(equation.outvars)
    if held.anything:
        lows = _bind(equation, [given.low for given in inputs], equation.params)
    highs = _high(equation, [given.high for given in inputs], inputs, lows, held)
    if held.still:
        at_rest = held._replace(shaken=None)
        stills = _high(equation, [given.still for given in inputs], inputs, lows, at_rest)
    if is_decision(equation):
        highs, stills = as_decided(highs, lows, stills, held.decided)
    return [Numbers(*three) for three in zip(highs, lows, stills, strict=True)]


def _high(equation: Any, highs: list, inputs: list[Numbers], lows: list, held: Held) -> list:
    """The outputs in float64, where the inputs are `highs`."""
    name = equation.primitive.name
    if held.stopped and name == "stop_gradient":
        found = [wide(low) for low in lows]
    elif name == "random_gamma" and held.anything:
        found = [_drawn(inputs[1].low, highs[1], lows[0], equation.params["log_space"])]
    elif name == "reduce_precision":
        found = highs
    elif name in OWN or not any(map(is_inexact, highs)) or graphs_in(equation):
        found = _in_its_own_precision(equation, highs)
    else:
        params = {k: _widened_param(k, v) for k, v in equation.params.items()}
        found = [wide(x) for x in _bind(equation, highs, params)]  # some decide their type alone
    if held.shaken is None or name in EXACT or not any(map(is_inexact, highs)):
        return found
    pairs = zip(found, equation.outvars, strict=True)
    return [
        shake(x, v.aval, next(held.shaken), held.draw) if is_inexact(v.aval) else x
        for x, v in pairs
    ]


def _in_its_own_precision(equation: Any, highs: list) -> list:
    own = [
        jnp.asarray(x).astype(v.aval.dtype) if is_inexact(v.aval) else x
        for x, v in zip(highs, equation.invars, strict=True)
    ]
    scatter = getattr(lax, equation.primitive.name.replace("-", "_"), None)
    if equation.primitive.name.startswith("scatter") and scatter is not None:
        own_params = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [scatter(*highs, **{k: equation.params[k] for k in own_params})]
    return [wide(x) for x in _bind(equation, own, equation.params)]


def _bind(equation: Any, inputs: list, params: dict) -> list:
    bound = equation.primitive.get_bind_params(params)
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*inputs, **bound)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _drawn(own_shape: Any, shape: Any, drawn: Any, log_space: bool) -> Any:
    """A gamma variate, moved with its distribution: by jax's own slope, since the numbers that a
    key gives move otherwise (Figurnov, Mohamed, Mnih: Implicit Reparameterization Gradients, 2018).
    """
    least = float(jnp.finfo(drawn.dtype).tiny)
    sample = jnp.maximum(jnp.exp(drawn), least) if log_space else drawn
    slope = wide(lax.random_gamma_grad(jnp.asarray(own_shape), sample))  # type: ignore[call-arg]
    slope = slope / wide(sample) if log_space else slope
    return wide(drawn) + slope * (shape - wide(own_shape))


def _widened_param(name: str, value: Any) -> Any:
    """A parameter that is a floating dtype, as float64; none that asks for less precision."""
    if name in ("precision", "accuracy"):
        return None
    is_type = isinstance(value, np.dtype | type) and not isinstance(value, bool)
    if is_type and jnp.issubdtype(value, jnp.inexact):
        return np.dtype(wide_type(value))
    return value


# --- operations that contain a graph ---


def _call(equation: Any, inputs: list[Numbers], held: Held) -> list[Numbers]:
    """A call, a checkpoint, a function with a rule of its own: the function, not the rule."""
    params = equation.params
    inner = next(params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)
    return _run(inner, inputs, held)


def _higher(equation: Any, inputs: list[Numbers], held: Held) -> list[Numbers]:
    """An operation of jax's higher-order kind is an object, that says what it is made of."""
    made = equation.params["_prim"]

    def opened(*arrays: Any) -> Any:
        return made.out_tree.flatten_up_to(made.expand(*made.in_tree.unflatten(arrays)))

    return _run(jax.make_jaxpr(opened)(*(v.aval for v in equation.invars)), inputs, held)


def _scan(equation: Any, inputs: list[Numbers], held: Held) -> list[Numbers]:
    params = equation.params
    n_consts, n_carry = lengths(params)
    consts, carry, xs = parts(inputs, n_consts, n_carry)

    def turn(carry, x):
        found = _run(params["jaxpr"], [*consts, *carry, *x], held)
        return _strong(found[:n_carry]), _strong(found[n_carry:])

    options = {k: params[k] for k in ("length", "reverse", "unroll")}
    end, ys = lax.scan(turn, _strong(carry), _strong(xs), **options)
    return [*end, *ys]


def _strong(given: list[Numbers]) -> list[Numbers]:
    """As arrays, none of a weak type."""
    return jax.tree.map(lambda x: lax.convert_element_type(x, jnp.asarray(x).dtype), given)


def _while(equation: Any, inputs: list[Numbers], held: Held) -> list[Numbers]:
    params = equation.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body, start = inputs[:n], inputs[n : n + m], inputs[n + m :]

    def more(state):
        (found,) = _run(params["cond_jaxpr"], [*of_test, *state], held)
        return found.high

    def turn(state):
        turned = _strong(_run(params["body_jaxpr"], [*of_body, *state], held))
        return going_on(more(state), turned, state)

    return lax.while_loop(lambda state: jnp.any(more(state)), turn, _strong(start))


def _cond(equation: Any, inputs: list[Numbers], held: Held) -> list[Numbers]:
    branches = [
        lambda operands, branch=branch: _strong(_run(branch, operands, held))
        for branch in equation.params["branches"]
    ]
    which = jnp.asarray(inputs[0].high).astype(jnp.int32)
    return lax.switch(which, branches, list(inputs[1:]))


def _linear_solve(equation: Any, inputs: list[Numbers], held: Held) -> list[Numbers]:
    """A x = b with the A that moves: its solver may have stopped A at the arguments, so what is
    left of b is solved for again, until nothing is."""
    counts, graphs = equation.params["const_lengths"], equation.params["jaxprs"]
    first = counts.matvec + counts.vecmat
    of_matvec, of_solve = inputs[: counts.matvec], inputs[first : first + counts.solve]
    b = inputs[sum(counts) :]
    x = _run(graphs.solve, [*of_solve, *b], held)
    if held.stopped:
        for _ in range(REFINED):
            product = _run(graphs.matvec, [*of_matvec, *x], held)
            rest = [v._replace(high=v.high - p.high) for v, p in zip(b, product, strict=True)]
            step = _run(graphs.solve, [*of_solve, *rest], held)
            x = [v._replace(high=v.high + d.high) for v, d in zip(x, step, strict=True)]
    return x


CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "remat")
RULED = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
STRUCTURE: dict[str, Callable[[Any, list[Numbers], Held], list[Numbers]]] = {
    **dict.fromkeys((*CALLS, *RULED), _call),
    "call_hi_primitive": _higher,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
}

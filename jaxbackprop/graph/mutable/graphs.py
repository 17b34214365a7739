"""Graphs without mutable arrays: what they write is threaded through as a value.

An operation that holds a graph, and is given a mutable array, is given the value instead, and
returns what the graph left in it: a scan carries it, a branch returns it as it was or as it wrote
it. The numbers are those of the program that was written; the walk sees values only.
"""

import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
from jax import lax
from jax.extend.core import Literal, jaxpr_as_fun

from jaxbackprop.graph.dependence import CALLS, lengths, open_jaxpr, parts
from jaxbackprop.graph.mutable.cells import Cell, access, is_mutable, new
from jaxbackprop.graph.rules.refused import INTO_RULES, MUTABLE, refusal
from jaxbackprop.graph.rules.table import UnsupportedPrimitive
from jaxbackprop.graph.walk import context, evaluate, from_line

MAKES = ("new_ref", "empty_ref")
ACCESSES = ("get", "swap", "addupdate", "freeze", "free_ref")
OF_ONE = (*MAKES, *ACCESSES)


class Threaded:
    """A graph of values: in the place of a mutable array its value; what it holds at the end comes
    after the outputs, of those at the places `written` among the inputs."""

    def __init__(self, graph: Any) -> None:
        jaxpr, consts = open_jaxpr(graph)
        invars = jaxpr.invars[len(consts) - len(jaxpr.constvars) :]  # on 0.12 given ones come first
        self.n_outputs, self.written = len(jaxpr.outvars), []

        def run(*values):
            inputs = [
                Cell(v.aval, x) if is_mutable(v.aval) else x
                for v, x in zip(invars, values, strict=True)
            ]
            outputs = evaluated(jaxpr, consts, inputs)
            cells = {i: x for i, x in enumerate(inputs) if isinstance(x, Cell) and x.written}
            self.written = list(cells)
            return [*outputs, *(x.value for x in cells.values())]

        types = [getattr(v.aval, "inner_aval", v.aval) for v in invars]
        self.graph = jax.make_jaxpr(run)(*types)
        self.compiled = jax.jit(jaxpr_as_fun(self.graph))

    def __call__(self, *values: Any) -> tuple[list, dict[int, Any]]:
        return self.parted(jaxpr_as_fun(self.graph)(*values))

    def parted(self, found: Sequence) -> tuple[list, dict[int, Any]]:
        """Its outputs, and by place what it wrote."""
        left = found[self.n_outputs :]
        return list(found[: self.n_outputs]), dict(zip(self.written, left, strict=True))


_MADE: weakref.WeakKeyDictionary[Any, Threaded] = weakref.WeakKeyDictionary()


def make_jaxpr(f: Callable, return_shape: bool = False) -> Callable:
    """As jax.make_jaxpr, of a graph without the mutable arrays that f makes."""

    def made(*args):
        graph, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        return (without_mutable(graph), shape) if return_shape else without_mutable(graph)

    return made


def without_mutable(graph: Any) -> Any:
    """The same graph, without the mutable arrays that it makes."""
    return threaded(graph).graph if _mentions(graph) else graph


def pure(jaxpr: Any, consts: Sequence) -> tuple[Any, Sequence]:
    """The same of a graph and its constants."""
    closed = SimpleNamespace(jaxpr=jaxpr, consts=consts)
    return open_jaxpr(Threaded(closed).graph) if _mentions(closed) else (jaxpr, consts)


def threaded(graph: Any) -> Threaded:
    if graph not in _MADE:
        _MADE[graph] = Threaded(graph)
    return _MADE[graph]


def evaluated(jaxpr: Any, consts: Sequence, inputs: Sequence) -> list:
    variables = (*jaxpr.constvars, *jaxpr.invars)
    values: dict = dict(zip(variables, (*consts, *inputs), strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else values[v]  # noqa: E731
    for equation in jaxpr.eqns:
        given = [read(v) for v in equation.invars]
        cells = any(isinstance(x, Cell) for x in given)
        if cells or concerns(equation.primitive, equation.params):
            several = equation.primitive.multiple_results
            types = [v.aval for v in equation.outvars] if several else equation.outvars[0].aval
            with context(equation), from_line(equation):
                outputs = operate(equation.primitive, given, equation.params, types)
        else:
            outputs = evaluate(equation, given)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def concerns(primitive: Any, params: dict) -> bool:
    """Does the operation make a mutable array, or hold a graph that makes or uses one?"""
    name = primitive.name
    return name in MAKES or any(map(_mentions if name in GRAPHS else _makes, graphs_of(params)))


def _mentions(graph: Any) -> bool:
    """Does a graph make mutable arrays, or touch those that it is given?"""
    jaxpr, _ = open_jaxpr(graph)
    return _makes(graph) or any(is_mutable(v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))


def _makes(graph: Any) -> bool:
    jaxpr, _ = open_jaxpr(graph)
    return any("MutableArray" in type(effect).__name__ for effect in jaxpr.effects)


def graphs_of(params: dict) -> list:
    values = (x if isinstance(x, tuple) else (x,) for x in params.values())
    return [x for several in values for x in several if _is_graph(x)]


def _is_graph(x: Any) -> bool:
    return hasattr(x, "eqns")


def operate(primitive: Any, inputs: list, params: dict, types: Any) -> list:
    """The outputs of an operation, of these types; cells are changed by it, or made."""
    name = primitive.name
    if name in MAKES:
        return [new(types, *inputs)]
    if name in ACCESSES:
        cell, *rest = inputs
        own = 1 if name in ("swap", "addupdate") else 0
        transforms = jax.tree.unflatten(params["tree"], rest[own:]) if "tree" in params else ()
        return access(name, cell, rest[:own], transforms)
    if name not in GRAPHS:
        raise UnsupportedPrimitive(refusal(name, MUTABLE))
    if name in (*CALLS, *RULED):
        return GRAPHS[name](primitive, inputs, params)
    borrowed = [_borrowed(x) for x in inputs]
    outputs = GRAPHS[name](primitive, borrowed, params)
    for x, cell in zip(inputs, borrowed, strict=True):
        if isinstance(cell, Cell) and cell is not x and cell.written:
            x[...] = cell.value
    return outputs


def _borrowed(x: Any) -> Any:
    """Of a mutable array that f was given, its value at the moment."""
    if isinstance(x, Cell) or not is_mutable(jax.typeof(x)):
        return x
    return Cell(jax.typeof(x), x[...])


def _values(inputs: Sequence) -> list:
    return [x.value if isinstance(x, Cell) else x for x in inputs]


def _left(cells: Sequence, finals: dict[int, Any]) -> None:
    for place, value in finals.items():
        cells[place].write((), value)


Operate = Callable[[Any, list, dict], list]


def _call(primitive: Any, inputs: list, params: dict) -> list:
    """A call without its frame: its equations stand where it stood."""
    return evaluated(*open_jaxpr(params[CALLS[primitive.name]]), inputs)


def _jit(primitive: Any, inputs: list, params: dict) -> list:
    """Jitted it stays; but what uses mutable arrays of the world outside stands where it is."""
    jaxpr, consts = open_jaxpr(params["jaxpr"])
    if any(is_mutable(jax.typeof(x)) for x in (*inputs, *consts) if not isinstance(x, Cell)):
        return evaluated(jaxpr, consts, inputs)
    if not any(isinstance(x, Cell) for x in inputs):
        return _inside(primitive, inputs, params)
    inner = threaded(params["jaxpr"])
    outputs, finals = inner.parted(inner.compiled(*_values(inputs)))
    _left(inputs, finals)
    return outputs


def _remat(primitive: Any, inputs: list, params: dict) -> list:
    options = {name: params[name] for name in ("prevent_cse", "policy")}
    inner = threaded(params["jaxpr"])
    outputs, finals = jax.checkpoint(lambda *xs: inner(*xs), **options)(*_values(inputs))
    _left(inputs, finals)
    return outputs


def _cond(primitive: Any, inputs: list, params: dict) -> list:
    """What one branch writes, another returns as it was given it."""
    branches = [threaded(branch) for branch in params["branches"]]
    written = sorted({place for branch in branches for place in branch.written})

    def taken(branch):
        def run(*operands):
            outputs, finals = branch(*operands)
            return outputs, {i: finals.get(i, operands[i]) for i in written}

        return run

    which, *operands = _values(inputs)
    outputs, finals = lax.switch(which, [taken(branch) for branch in branches], *operands)
    _left(inputs[1:], finals)
    return outputs


def _scan(primitive: Any, inputs: list, params: dict) -> list:
    """What a step writes is carried to the next one; of what comes in slices it is stacked."""
    step, (n_consts, n_carry) = threaded(params["jaxpr"]), lengths(params)
    options = {name: params[name] for name in ("length", "unroll", "reverse")}
    consts, start, xs = parts(_values(inputs), n_consts, n_carry)
    held = {i: consts[i] for i in step.written if i < n_consts}

    def body(state, x):
        held, carry = state
        fixed = [held.get(i, const) for i, const in enumerate(consts)]
        outputs, finals = step(*fixed, *carry, *x)
        rows = {i: value for i, value in finals.items() if i not in held}
        return ({i: finals[i] for i in held}, outputs[:n_carry]), (outputs[n_carry:], rows)

    (held, end), (ys, rows) = lax.scan(body, (held, start), xs, **options)
    _left(inputs, {**held, **rows})
    return [*end, *ys]


def _while(primitive: Any, inputs: list, params: dict) -> list:
    condition, body = threaded(params["cond_jaxpr"]), threaded(params["body_jaxpr"])
    before, count = params["cond_nconsts"], params["body_nconsts"]
    written = {id(inputs[before + i]) for i in body.written}
    if any(id(x) in written for x in inputs[:before]):
        raise UnsupportedPrimitive(
            "the condition of a 'while' reads a mutable array that its body writes: carry the value"
        )
    of_condition, consts, start = parts(_values(inputs), before, count)

    def turn(state):
        held, carry = state
        fixed = [held.get(i, const) for i, const in enumerate(consts)]
        carry, held = body(*fixed, *carry)
        return held, carry

    held, end = lax.while_loop(
        lambda state: condition(*of_condition, *state[1])[0][0],
        turn,
        ({i: consts[i] for i in body.written}, start),
    )
    _left(inputs[before:], held)
    return end


def _shard_map(primitive: Any, inputs: list, params: dict) -> list:
    """On each device the body makes its own."""
    if any(isinstance(x, Cell) for x in inputs):
        raise UnsupportedPrimitive(refusal(primitive.name, INTO_RULES))
    mapped = jax.shard_map(
        lambda *xs: evaluated(*open_jaxpr(params["jaxpr"]), xs),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        axis_names=set(params["newly_manual_axes"]),
    )
    return mapped(*inputs)


def _inside(primitive: Any, inputs: list, params: dict) -> list:
    """Where no mutable array goes in, its graphs are replaced, and nothing else. A rule of one's
    own is given those of the world outside as they are: it may write to them on the way back."""
    if any(isinstance(x, Cell) for x in inputs):
        raise UnsupportedPrimitive(refusal(primitive.name, INTO_RULES))
    if not any(is_mutable(jax.typeof(x)) for x in inputs):
        params = {name: _replaced(value) for name, value in params.items()}
    found = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return list(found) if primitive.multiple_results else [found]


def _replaced(value: Any) -> Any:
    if isinstance(value, tuple):
        parts = [_replaced(x) for x in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return without_mutable(value) if _is_graph(value) else value


RULED = ("custom_jvp_call", "custom_vjp_call", "custom_linear_solve")
GRAPHS: dict[str, Operate] = {
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(("jit", "pjit"), _jit),
    **dict.fromkeys(("checkpoint", "remat2", "remat"), _remat),
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
    "while": _while,
    **dict.fromkeys(RULED, _inside),
}

"""The forward pass of a function as it runs: each operation is evaluated, and recorded.

jax.grad sees the operations of a function while they happen, on values; so does this, by the same
door (`jax.core.Trace`). Python may look at a value (`if x > 0`), nothing is traced beforehand, and
under jit, vmap or another gradient the values are tracers in turn.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Trace, Tracer
from jax.extend import source_info_util
from jax.extend.core import (
    JaxprEqn,
    gensym,
    new_jaxpr_eqn,
    set_current_trace,
    take_current_trace,
)

from jaxbackprop.graph.halves import on_tangents
from jaxbackprop.graph.mutable import OF_ONE, Cell, concerns, operate
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.rules.refused import INTO_RULES, refusal
from jaxbackprop.graph.walk import (
    FLAT,
    Ends,
    Node,
    Tape,
    evaluate,
    following,
    is_flat,
    is_real,
    record,
)

new_variable = gensym()


@functools.cache
def _perturbed() -> Tracer:
    """jax.closure_convert looks into a tracer for what may be differentiated: for such a one."""
    found = []
    jax.make_jaxpr(lambda x: found.append(x))(jax.ShapeDtypeStruct((), jnp.float32))
    return found[0]


class Recorded(Tracer):
    """A value that depends on a differentiated input, and its variable on the tape."""

    __slots__ = ("mark", "value", "variable")

    def __init__(self, trace: "Recording", value: Any) -> None:
        aval = jax.typeof(value)
        super().__init__(trace, aval)
        self.value, self.variable, self.mark = value, new_variable(aval), _perturbed()

    def to_concrete_value(self) -> Any:
        """The number itself, for Python to look at; None under jit, where there is none."""
        return self.value.to_concrete_value() if isinstance(self.value, Tracer) else self.value


class Mutable(Tracer):
    """A mutable array that f makes: a cell, whose value is recorded when it is written."""

    __slots__ = ("cell",)

    def __init__(self, trace: "Recording", cell: Cell) -> None:
        super().__init__(trace, cell.aval)
        self.cell = cell


class Recording(Trace):
    """Evaluates what a function does, under the trace that it was called in, and tapes it."""

    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.requires_low = False  # operations come as they are written, not as they are lowered
        self.parent = parent
        self.nodes: list[Node] = []

    def is_own(self, x: Any) -> bool:
        return isinstance(x, Recorded) and x._trace is self

    def process_primitive(self, primitive: Any, args: Sequence, params: dict, /) -> Any:
        if concerns(primitive, params) or any(isinstance(x, Mutable) for x in args):
            outputs = self.with_cells(primitive, args, params)
            return outputs if primitive.multiple_results else outputs[0]
        with set_current_trace(self.parent):
            if not any(map(self.is_own, args)) or primitive.name in FLAT:
                return primitive.bind(*self.values(args), **params)
            types = [jax.typeof(x) for x in args]
            found, effects = primitive.abstract_eval(*types, **params)
            outvars = [new_variable(t) for t in (found if primitive.multiple_results else [found])]
            source = source_info_util.current()
            equation = new_jaxpr_eqn(
                [new_variable(t) for t in types], outvars, primitive, params, effects, source
            )
            outputs = self.tape(equation, args)
        return outputs if primitive.multiple_results else outputs[0]

    def with_cells(self, primitive: Any, args: Sequence, params: dict) -> list:
        """An operation on mutable arrays, or with such ones inside: as operations on values."""
        types = None
        if primitive.name in OF_ONE:  # or jax refuses
            types, _ = primitive.abstract_eval(*map(jax.typeof, args), **params)
        cells = [x.cell if isinstance(x, Mutable) else x for x in args]
        with set_current_trace(self):
            outputs = operate(primitive, cells, params, types)
        return [Mutable(self, x) if isinstance(x, Cell) else x for x in outputs]

    def stage_value(self, val: Any) -> Any:
        return val if self.is_own(val) else self.parent.stage_value(val)

    def process_custom_jvp_call(self, primitive, fun, jvp, args, /, **params):
        return self.with_functions(primitive, (fun, jvp), args, params)

    def process_custom_vjp_call(self, primitive, fun, fwd, bwd, args, /, **params):
        return self.with_functions(primitive, (fun, fwd, bwd), args, params)

    def process_call(self, primitive, fun, args, params, /):
        return self.with_functions(primitive, (fun,), args, params)

    def process_shard_map(self, primitive, fun, args, /, **params):
        return self.with_functions(primitive, (fun,), args, params)

    def with_functions(self, primitive: Any, functions: tuple, args: Sequence, params: dict) -> Any:
        """An operation that comes with Python functions is traced to an equation, by itself."""
        if any(isinstance(x, Mutable) for x in args):
            raise UnsupportedPrimitive(refusal(primitive.name, INTO_RULES))
        form = []

        def bound(*values):
            form[:] = [primitive.bind(*values, subfuns=functions, **params)]
            return list(form[0])

        with set_current_trace(self.parent):
            values = self.values(args)
            if not any(map(self.is_own, args)):
                return primitive.bind(*values, subfuns=functions, **params)
            closed = jax.make_jaxpr(bound)(*values)
            known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
            known |= dict(zip(closed.jaxpr.invars, args, strict=True))
            (equation,) = closed.jaxpr.eqns
            given = [known[v] for v in equation.invars]
            if concerns(equation.primitive, equation.params) and len(functions) == 1:
                return self.with_cells(equation.primitive, given, equation.params)
            found = self.tape(equation, given)
        if len(functions) > 1:  # the caller expects that one of them was called: the rule was
            for store in functions[0].stores:
                if store is not None:
                    store.reset()
        return form[0].update(found) if hasattr(form[0], "update") else found

    def tape(self, equation: JaxprEqn, args: Sequence) -> list:
        """Evaluate an equation, and record it if a gradient can pass through it."""
        values, active = self.values(args), [self.is_own(x) for x in args]
        if is_flat(equation):
            return evaluate(equation, values)
        with on_tangents(False):  # a rule that is walked at a higher level is no matter here
            outputs, pull = record(equation, values, active)
        followers = set(following(equation, active))
        pairs = zip(equation.outvars, outputs, strict=True)
        own = [Recorded(self, x) if v in followers else x for v, x in pairs]
        equation = equation.replace(
            invars=[self.variable(x, v) for x, v in zip(args, equation.invars, strict=True)],
            outvars=[self.variable(x, v) for x, v in zip(own, equation.outvars, strict=True)],
        )
        self.nodes.append(Node(equation, values, outputs, active, pull))
        return own

    def values(self, args: Sequence) -> list:
        return [x.value if self.is_own(x) else x for x in args]

    def variable(self, x: Any, otherwise: Any) -> Any:
        return x.variable if self.is_own(x) else otherwise


def run(f: Callable[..., tuple], leaves: Sequence) -> tuple[Any, Any, Tape]:
    """f(*leaves) = (out, aux), out a tree of arrays, and the tape of how out came about."""
    with take_current_trace() as parent:
        recording = Recording(parent)
        inputs = [Recorded(recording, x) if is_real(x) else x for x in leaves]
        with set_current_trace(recording):
            out, aux = f(*inputs)
        recording.invalidate()
    found, tree = jax.tree.flatten(out)
    found = [x if isinstance(x, Tracer) else jnp.asarray(x) for x in found]
    invars = [recording.variable(x, new_variable(jax.typeof(x))) for x in inputs]
    outvars = [recording.variable(x, new_variable(jax.typeof(x))) for x in found]
    outputs, active = recording.values(found), [recording.is_own(x) for x in found]
    tape = Tape(Ends(invars, outvars), recording.nodes, outputs, active)
    aux = jax.tree.map(lambda x: x.value if recording.is_own(x) else x, aux)
    return jax.tree.unflatten(tree, outputs), aux, tape

"""The two ways through a planned graph: ahead to the function's outputs, back to the gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxbackprop.checkpoint.descriptions import Within, described
from jaxbackprop.graph.budget.calling import MEASURED_BY, measured_by
from jaxbackprop.graph.budget.emission import Evaluation
from jaxbackprop.graph.budget.joint import trace
from jaxbackprop.graph.budget.planning import compiled_bytes, plan
from jaxbackprop.graph.budget.report import first_back
from jaxbackprop.graph.mutable import make_jaxpr
from jaxbackprop.graph.walk import is_real


def asked_bytes(checkpoint: Any) -> int | None:
    """The bytes of within(bytes) or "64MiB", None of None; ValueError for what a function's graph
    cannot be asked for."""
    if checkpoint is None:
        return None
    description = described(checkpoint)
    if not isinstance(description, Within):
        raise ValueError(
            f"checkpoint is {description}: the gradient of a function takes within(bytes), such as "
            'within("64MiB"); segments are for the layers of a Network'
        )
    return description.bytes


def run(f: Callable, leaves: Sequence[Any], bytes: int) -> tuple[Any, Any, Callable]:
    """(output, aux, pullback) of f(*leaves) = (output, aux). The pullback takes the cotangents of
    the output's leaves, and returns those of f's leaves.

    Both ways run in the order of one plan, which is made for the two as one program.
    """
    with measured_by(None):  # plans inside of f are their own
        closed, shapes = make_jaxpr(f, return_shape=True)(*leaves)
    of_output = len(jax.tree.leaves(shapes[0]))
    seeded = [i < of_output and is_real(v.aval) for i, v in enumerate(closed.jaxpr.outvars)]
    joint, consts, found = trace(closed.jaxpr, closed.consts, leaves, seeded)
    planned = plan(joint, bytes, MEASURED_BY.get() or compiled_bytes)
    steps = planned.order.steps
    first = first_back(planned.graph, steps)
    known = len(joint.inputs) - sum(seeded)
    inputs = [one_at_a_time(x) for x in (*consts, *leaves)]
    evaluation = Evaluation(planned.graph, planned.order, joint.inputs[:known], inputs)
    evaluation.run(steps[:first])
    outputs = [evaluation.read(v) for v in joint.outputs[: len(seeded)]]

    def pull(cts: list) -> list:
        seeds = [ct for ct, s in zip(cts, seeded, strict=False) if s]
        rest = evaluation.copy()
        rest.given(joint.inputs[known:], seeds)
        rest.run(steps[first:])
        gradients = iter([rest.read(v) for v in joint.outputs[len(seeded) :]])
        return [next(gradients) if has else None for has in found]

    return *jax.tree.unflatten(jax.tree.structure(shapes), outputs), pull


def _refuse(values: tuple, places: tuple) -> Any:
    raise ValueError(
        "checkpoint=within(...) plans one program, and does not see the batch of a jax.vmap around "
        "it: put the vmap inside, as in value_and_grad(lambda p, xs: vmap(f, (None, 0))(p, xs)"
        ".mean(), checkpoint=...)"
    )


def one_at_a_time(x: Any) -> Any:
    """The identity, which says no to jax.vmap: a plan is made for the arrays as they are."""
    return _one_at_a_time.bind(x)


_one_at_a_time = Primitive("one_at_a_time")
_one_at_a_time.def_impl(lambda x: x)
_one_at_a_time.def_abstract_eval(lambda x: x)
mlir.register_lowering(_one_at_a_time, lambda context, x: [x])
batching.primitive_batchers[_one_at_a_time] = _refuse
ad.deflinear2(_one_at_a_time, lambda ct, x: [ct])

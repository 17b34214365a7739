"""What a shard_map computes on its devices, looked into: which of its equations made the first
number that is not finite and spoils what it returns."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.sharding import PartitionSpec

from jaxbackprop.graph.inspection.steps import Step
from jaxbackprop.graph.structure import open_jaxpr
from jaxbackprop.graph.walk import evaluate, is_real


def on_a_device(step: Step) -> Any | None:
    """The equation of a shard_map's body; None where the step is none, or nothing is found.

    The body runs with each equation's results told finite or not, and once more for each suspect,
    all that is made after it healed: the first that spoils the results all the same.
    """
    if step.equation.primitive.name != "shard_map":
        return None
    params, (jaxpr, consts) = step.equation.params, open_jaxpr(step.equation.params["jaxpr"])
    everywhere = PartitionSpec(tuple(sorted(params["newly_manual_axes"])))

    def body(inputs: list, healed_after: Any) -> tuple[Any, Any]:
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
        read = lambda v: v.val if isinstance(v, Literal) else values[v]  # noqa: E731
        made = []
        for k, equation in enumerate(jaxpr.eqns):
            given = [read(v) for v in equation.invars]
            outputs = evaluate(equation, given)
            made.append(_ill(outputs) & ~_ill(given))
            healed = [_healed(x, made[-1] & (k > healed_after)) for x in outputs]
            values.update(zip(equation.outvars, healed, strict=True))
        spoiled = _ill([read(v) for v in jaxpr.outvars])
        return jnp.stack(made)[None], spoiled[None]

    run = jax.jit(
        jax.shard_map(
            body,
            mesh=params["mesh"],
            in_specs=(list(params["in_specs"]), PartitionSpec()),
            out_specs=(everywhere, everywhere),
            check_vma=params["check_vma"],
            axis_names=set(params["newly_manual_axes"]),
        )
    )
    inputs, last = [v.array for v in step.invars], len(jaxpr.eqns)
    made, _ = run(inputs, last)
    for k in np.flatnonzero(np.asarray(made).any(axis=0)):
        if np.asarray(run(inputs, k)[1]).any():
            return jaxpr.eqns[k]
    return None


def _ill(arrays: Sequence) -> Any:
    """Is any number not finite?"""
    found = [~jnp.all(jnp.isfinite(x)) for x in arrays if is_real(x)]
    return jnp.any(jnp.stack(found)) if found else jnp.array(False)


def _healed(x: Any, heal: Any) -> Any:
    """What is the same on all devices stays so: it is no one device's to heal."""
    if not is_real(x) or jax.typeof(heal).mat.varying - jax.typeof(x).mat.varying:
        return x
    return jnp.where(heal & ~jnp.isfinite(x), jnp.ones_like(x), x)

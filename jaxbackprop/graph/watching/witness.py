"""A witness: an equation that says whether it made a number that is not finite, forward or back,
and that can be made to put a finite one in its place.

Healing is how a cause is told from what does no harm, such as the -Inf of a mask: it is a cause if
the results are not finite although everything that was made after it is healed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph import walk
from jaxbackprop.graph.rules.table import entrywise
from jaxbackprop.graph.walk import is_real
from jaxbackprop.graph.watching.rewriting import Ears, Visit
from jaxbackprop.graph.watching.sites import Site

# The numbers that come out of these are numbers that went in.
CARRIERS = {"reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "split"}
CARRIERS |= {"dynamic_slice", "dynamic_update_slice", "concatenate", "pad", "rev", "select_n"}
CARRIERS |= {"gather", "copy", "copy_p", "name", "neg", "abs", "max", "min", "sort", "sign"}
CARRIERS |= {"reduce_max", "reduce_min", "stop_gradient", "optimization_barrier", "clamp", "top_k"}


class Ear(NamedTuple):
    """What a witness is told, and hears: with an axis for each scan around it.

    heal: the value, and what goes back to each operand. heard: the gradient by it says of each
    operand whether what went back to it was made there.
    """

    heal: Any
    heard: Any


def ears(chosen: Sequence[Site], heal: Callable[[int, Site], np.ndarray]) -> Ears:
    """heal(n, site) has the shape (*steps, 1 + operands)."""
    return {
        n: Ear(
            np.asarray(heal(n, site), np.float32),
            np.zeros((*site.steps, len(site.operands)), np.float32),
        )
        for n, site in enumerate(chosen)
    }


def witnesses(
    chosen: Sequence[Site], of_inf: bool
) -> Callable[[Visit], tuple[list, dict[int, Any]]]:
    """At each equation its witness; what is seen says whether its value was made there.

    Made is NaN or Inf of finite numbers; and NaN of numbers of which some were Inf, if `of_inf`.
    """

    def visitor(visit: Visit) -> tuple[list, dict[int, Any]]:
        (n,) = visit.numbers.values()
        made = functools.partial(_made, entrywise(visit.equation), of_inf)
        call = _both_ways if chosen[n].active else _ahead
        outputs, seen = call(visit.equation, made, chosen[n].operands, visit.inputs, visit.ears[n])
        return list(outputs), {n: seen}

    return visitor


Made = Callable[[Any, Sequence], Any]  # the entries of an array that were made of the operands


def _ahead(
    equation: Any, made: Made, operands: Sequence[bool], inputs: Sequence, ear: Ear
) -> tuple[list, jax.Array]:
    outputs, seen = walk.evaluate(equation, list(inputs)), jnp.array(False)
    for k, output in enumerate(outputs):
        if is_real(output):
            ill = made(output, inputs)
            outputs[k] = jnp.where(ill & (ear.heal[0] > 0), jnp.ones_like(output), output)
            seen |= jnp.any(ill)
    return outputs, seen.astype(jnp.float32)


def _both_ways(
    equation: Any, made: Made, operands: Sequence[bool], inputs: Sequence, ear: Ear
) -> tuple[list, jax.Array]:
    @jax.custom_vjp
    def ahead(inputs, ear):
        return _ahead(equation, made, operands, inputs, ear)

    def back(kept, cts):
        inputs, ear = kept
        outputs, _ = ahead(inputs, ear)
        pairs = zip(equation.outvars, cts[0], strict=True)
        cts = [ct if is_real(v.aval) else None for v, ct in pairs]
        found = walk.record(equation, list(inputs), list(operands))[1](cts)
        values = [*inputs, *outputs, *(ct for ct in cts if ct is not None)]
        heard = []
        for i, contribution in enumerate(found):
            if contribution is None or not is_real(contribution):
                found[i] = None
                heard.append(jnp.array(False))
                continue
            ill = made(contribution, values)
            found[i] = jnp.where(ill & (ear.heal[1 + i] > 0), 0, contribution)
            heard.append(jnp.any(ill))
        return found, Ear(jnp.zeros_like(ear.heal), jnp.stack(heard).astype(jnp.float32))

    ahead.defvjp(lambda inputs, ear: (ahead(inputs, ear), (inputs, ear)), back)
    return ahead(list(inputs), ear)


def _made(entrywise: bool, of_inf: bool, array: Any, operands: Sequence) -> Any:
    """The entries that are not finite, though the operands are; or are NaN, though they are not."""

    def all_of(test: Callable) -> Any:
        found = [
            test(x) if entrywise and jnp.shape(x) == jnp.shape(array) else jnp.all(test(x))
            for x in operands
            if is_real(x)
        ]
        return functools.reduce(jnp.logical_and, found, jnp.array(True))

    ill = ~jnp.isfinite(array) & all_of(jnp.isfinite)
    return ill | (jnp.isnan(array) & all_of(lambda x: ~jnp.isnan(x))) if of_inf else ill

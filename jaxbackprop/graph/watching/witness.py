"""A witness: an equation that says whether it made a number that is not finite, forward or back,
and that can be made to put a finite one in its place.

Healing is how a cause is told from what does no harm, such as the -Inf of a mask: it is a cause if
the results are not finite although everything that was made after it is healed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph import walk
from jaxbackprop.graph.rules import RULES
from jaxbackprop.graph.walk import is_real
from jaxbackprop.graph.watching.rewriting import Ears, Visit
from jaxbackprop.graph.watching.sites import Site

# What can be made: NaN or Inf of finite numbers; NaN of numbers of which some were Inf.
OF_FINITE, OF_NO_NAN = 0, 1


class Ear(NamedTuple):
    """What a witness is told, and hears: with an axis for each scan around it.

    heal: the value, and what goes back to each operand. both: heal NaN of Inf, too. heard: the
    gradient by it says of each operand what was made on the way back, of finite and of no NaN.
    """

    heal: Any
    both: Any
    heard: Any


def ears(chosen: Sequence[Site], heal: Callable[[int, Site], np.ndarray], both: bool) -> Ears:
    """heal(n, site) has the shape (*steps, 1 + operands)."""
    return {
        n: Ear(
            np.asarray(heal(n, site), np.float32),
            np.full(site.steps, both, np.float32),
            np.zeros((*site.steps, 2, len(site.operands)), np.float32),
        )
        for n, site in enumerate(chosen)
    }


def witnesses(chosen: Sequence[Site]) -> Callable[[Visit], tuple[list, dict[int, Any]]]:
    """At each equation its witness; what is seen says what was made on the way forward."""

    def visitor(visit: Visit) -> tuple[list, dict[int, Any]]:
        (n,) = visit.numbers.values()
        call = _both_ways if chosen[n].active else _ahead
        outputs, seen = call(visit.equation, chosen[n].operands, visit.inputs, visit.ears[n])
        return list(outputs), {n: seen}

    return visitor


def _ahead(
    equation: Any, operands: Sequence[bool], inputs: Sequence, ear: Ear
) -> tuple[list, jax.Array]:
    outputs, seen = walk.evaluate(equation, list(inputs)), jnp.zeros(2)
    for k, output in enumerate(outputs):
        if is_real(output):
            made = _made(output, inputs, entrywise(equation))
            outputs[k] = jnp.where(_ill(made, ear.heal[0], ear.both), jnp.ones_like(output), output)
            seen = jnp.maximum(seen, _any(made))
    return outputs, seen


def _both_ways(
    equation: Any, operands: Sequence[bool], inputs: Sequence, ear: Ear
) -> tuple[list, jax.Array]:
    @jax.custom_vjp
    def ahead(inputs, ear):
        return _ahead(equation, operands, inputs, ear)

    def back(kept, cts):
        inputs, ear = kept
        outputs, _ = _ahead(equation, operands, inputs, ear)
        cts = [
            ct if is_real(v.aval) else None for v, ct in zip(equation.outvars, cts[0], strict=True)
        ]
        found = walk.record(equation, list(inputs), list(operands))[1](cts)
        values = [*inputs, *outputs, *(ct for ct in cts if ct is not None)]
        heard = jnp.zeros_like(ear.heard)
        for i, contribution in enumerate(found):
            if contribution is not None and is_real(contribution):
                made = _made(contribution, values, entrywise(equation))
                ill = _ill(made, ear.heal[1 + i], ear.both)
                found[i] = jnp.where(ill, jnp.zeros_like(contribution), contribution)
                heard = heard.at[:, i].set(_any(made))
            else:
                found[i] = None
        return found, Ear(jnp.zeros_like(ear.heal), jnp.zeros_like(ear.both), heard)

    ahead.defvjp(lambda inputs, ear: (ahead(inputs, ear), (inputs, ear)), back)
    return ahead(list(inputs), ear)


def _made(array: Any, operands: Sequence, entrywise: bool) -> tuple[Any, Any]:
    """The entries that are not finite, of finite operands; and those that are NaN, of no NaN."""
    finite, no_nan = jnp.array(True), jnp.array(True)
    for operand in operands:
        if is_real(operand):
            alike = entrywise and jnp.shape(operand) == jnp.shape(array)
            own, nan = jnp.isfinite(operand), ~jnp.isnan(operand)
            finite &= own if alike else jnp.all(own)
            no_nan &= nan if alike else jnp.all(nan)
    return ~jnp.isfinite(array) & finite, jnp.isnan(array) & no_nan


def _ill(made: tuple[Any, Any], heal: Any, both: Any) -> Any:
    of_finite, of_no_nan = made
    return (heal > 0) & (of_finite | (of_no_nan & (both > 0)))


def _any(made: tuple[Any, Any]) -> jax.Array:
    return jnp.stack([jnp.any(each) for each in made]).astype(jnp.float32)


def entrywise(equation: Any) -> bool:
    """Does each entry of the output depend on the same entry of the operands alone?"""
    rule = RULES.get(equation.primitive.name)
    family = rule.__module__.rpartition(".")[2] if rule else ""
    shapes = {jnp.shape(v.aval) for v in (*equation.invars, *equation.outvars)}
    single = len(equation.outvars) == 1
    return family in ("elementwise", "table") and single and len(shapes - {()}) < 2

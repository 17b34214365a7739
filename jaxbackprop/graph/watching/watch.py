"""`watch`: the value and gradient of a function, and statistics of what passes on the way.

The function's graph is rewritten with probes and differentiated by the same walk: no callbacks, no
value kept that was not kept before, and it goes wherever the function goes: under jit, in a
training step, in a scan.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxbackprop.graph.api import value_and_grad
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.watching.labels import Label, Seen, label, scalars, update_ratios
from jaxbackprop.graph.watching.probes import Statistics, ears, norm_max, taking
from jaxbackprop.graph.watching.rewriting import plan
from jaxbackprop.graph.watching.selection import Of, choose
from jaxbackprop.graph.watching.tracing import trace, visited


@dataclasses.dataclass(frozen=True)
class watch:
    """A function with f's arguments: ((value, gradients), seen).

    value and gradients are those of `jaxbackprop.value_and_grad`; seen is a tuple of `Seen`,
    one for each of `labels(*args)`. It goes where f goes: into a jitted training step, a scan.

    of: "products", the contractions and convolutions; "scopes", what each named scope ends with;
    "parameters"; "everything"; a line or file, "model.py:12"; a scope, a checkpoint_name or a
    parameter, or parts of its path; or a function of a `Label`. statistics: a function of an array
    to a pytree of real numbers, by default its norm and its greatest entry, `NormMax`.

    A function with a rule of its own (custom_jvp, custom_vjp), or a `while`, is one operation. The
    floating leaves of args[argnums] are differentiated, all else in them has the gradient None.
    Where jaxbackprop's dense networks are trained by `train.run`, `flow.observe` sees more: the
    errors δ of an example, saturated and dead units; for any other function it is this.

    Raises ValueError where nothing matches `of`, with the nearest that there is, TypeError as
    `value_and_grad`; warns where everything is very much.
    """

    f: Callable
    of: Of = "products"
    argnums: int | Sequence[int] = 0
    has_aux: bool = False
    statistics: Statistics = norm_max

    scalars = staticmethod(scalars)
    update_ratios = staticmethod(update_ratios)

    @property
    def __signature__(self) -> inspect.Signature:
        """f's own: what static_argnames of jax.jit mean."""
        return inspect.signature(self.f)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Seen, ...]]:
        traced = trace(self.f, self.argnums, args, kwargs, self.has_aux)
        numbers, chosen = choose(self.of, traced.parameters, traced.sites)
        rewritten = visited(traced, plan(chosen, taking(self.statistics)), self.has_aux)
        try:
            (value, (aux, values)), (gradients, heard) = value_and_grad(rewritten, (0, 1), True)(
                traced.wanted, ears(chosen, self.statistics)
            )
        except UnsupportedPrimitive:
            value_and_grad(traced.run)(traced.wanted)  # says so with the line of the user's code
            raise
        of_parameters = [
            Seen(self.statistics(jnp.asarray(x)), self.statistics(g), None)
            for i, (x, g) in enumerate(zip(traced.wanted, gradients, strict=True))
            if i in numbers
        ]
        of_sites = [Seen(values[n][0], heard.get(n), values[n][1]) for n in range(len(chosen))]
        value = (value, aux) if self.has_aux else value
        return (value, traced.gradients(gradients)), (*of_parameters, *of_sites)

    def labels(self, *args: Any, **kwargs: Any) -> tuple[Label, ...]:
        """What is seen, in order. Nothing is computed: shapes (jax.ShapeDtypeStruct) are enough."""
        traced = trace(self.f, self.argnums, args, kwargs, self.has_aux)
        numbers, chosen = choose(self.of, traced.parameters, traced.sites)
        return (*(traced.parameters[i] for i in numbers), *map(label, chosen))

"""Operations that contain a graph: calls, branches, loops of unknown length, linear solves.

Each recorder evaluates its equation and returns the outputs with a function that pulls their
cotangents back, by walking the inner graph.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbackprop.graph.dependence import CALLS, dependence, open_jaxpr
from jaxbackprop.graph.eager import at_once
from jaxbackprop.graph.halves import AROUND, asked_of, halves, pulled, through
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.walk import FOLLOWS, STRUCTURE, Recorder, evaluate, forward, is_real


def recorder(*names: str, follows: Callable | None = None) -> Callable[[Recorder], Recorder]:
    """Enter how operations are recorded, and which outputs follow which inputs, if not all do."""

    def enter(function: Recorder) -> Recorder:
        for name in names:
            STRUCTURE[name] = function
            if follows is not None:
                FOLLOWS[name] = follows
        return function

    return enter


def _called(equation: Any) -> Any:
    return equation.params[CALLS.get(equation.primitive.name, "jaxpr")]


def _inside(equation: Any, active: list[bool]) -> list[bool]:
    return dependence(open_jaxpr(_called(equation))[0], active)[1]


@recorder(*CALLS, follows=_inside)
@at_once
def call(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A jitted function is looked into, not treated as one operation."""
    return through(forward(*open_jaxpr(_called(equation)), inputs, active))


@recorder("checkpoint", "remat2", "remat", follows=_inside)
@at_once
def remat(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Nothing is kept but the inputs, and what the policy saves: the rest is computed again.

    Not before the cotangents are there: the barrier says so to the compiler, which would merge the
    second evaluation with the first, and to a loop around, which would store its values.
    """
    inner, policy = equation.params["jaxpr"], equation.params["policy"]
    flags, out_flags = dependence(open_jaxpr(inner)[0], active)
    parts = halves(inner, flags, out_flags, kept=_saved_by(policy, AROUND.get()))
    outputs, residuals = parts.ahead(inputs)

    def pull(cts):
        asked = asked_of(cts, out_flags)
        given = [ct if a else None for ct, a in zip(cts, asked, strict=True)]
        way = parts.of(asked) if any(asked) else parts
        read = way.read if not way.residuals else [True] * len(inputs)
        held = [x if there else None for x, there in zip(inputs, read, strict=True)]
        at_hand, kept, given = _held_back((held, residuals, given))
        return pulled(parts, at_hand, kept, asked, given)

    return outputs, pull


def _held_back(values: Any) -> Any:
    """The values, none of which is there before all are; but for those that are the same on more
    devices of a shard_map than the others: a barrier would make them differ there."""
    leaves, tree = jax.tree.flatten(values)
    varying = [_varying(x) for x in leaves]
    widest = frozenset().union(*varying)
    held = iter(
        lax.optimization_barrier([x for x, v in zip(leaves, varying, strict=True) if v == widest])
    )
    return tree.unflatten(
        _untouched(next(held)) if v == widest else x for x, v in zip(leaves, varying, strict=True)
    )


def _untouched(x: Any) -> Any:
    """x. Behind a barrier an integer has a tangent in jax, which jax.lax.cond refuses; x | 0 has
    none."""
    discrete = x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer)
    return lax.bitwise_or(x, jnp.zeros_like(x)) if discrete else x


def _varying(x: Any) -> frozenset:
    return jax.typeof(x).mat.varying


def _nothing(equation: Any) -> bool:
    return False


@functools.cache
def _saved_by(
    policy: Callable | None, around: Callable[[Any], bool] | None
) -> Callable[[Any], bool]:
    """Are the results of an equation saved, by the policy or by what is around? What a policy
    would offload is saved where it is."""
    if policy is None:
        return around or _nothing

    def saved(equation):
        if around is not None and around(equation):
            return True
        verdict = policy(equation.primitive, *(v.aval for v in equation.invars), **equation.params)
        return verdict if isinstance(verdict, bool) else "Recompute" not in type(verdict).__name__

    return saved


def _carried(equation: Any, active: list[bool]) -> list[bool]:
    """What a loop of unknown length carries, each by itself."""
    before, n = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    body, carry = open_jaxpr(equation.params["body_jaxpr"])[0], len(active) - before - n
    return dependence(body, active[before:], n, carry)[1]


@recorder("while", follows=_carried)
def while_loop(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Forward only: how many steps there were, and through what values, is not known."""
    out_flags = _carried(equation, active)

    def pull(cts):
        if not any(asked_of(cts, out_flags)):
            return [None] * len(inputs)
        raise UnsupportedPrimitive(
            "a 'while' with a number of steps known only at run time has no reverse: "
            "use a scan or a fori_loop with static bounds"
        )

    return evaluate(equation, inputs), pull


def _of_branches(equation: Any, active: list[bool]) -> list[bool]:
    branches = (open_jaxpr(branch)[0] for branch in equation.params["branches"])
    ends = [dependence(branch, active[1:])[1] for branch in branches]
    return [any(column) for column in zip(*ends, strict=True)]


@recorder("cond", follows=_of_branches)
@at_once
def cond(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The branch that was taken is taken again on the way back, from the same inputs."""
    which, operands, branches = inputs[0], inputs[1:], equation.params["branches"]
    flags = [a and is_real(x) for a, x in zip(active[1:], operands, strict=True)]
    out_flags = _of_branches(equation, active)
    parts = [halves(branch, flags, out_flags, kept=_nothing) for branch in branches]
    index = jnp.asarray(which).astype(jnp.int32)
    outputs = lax.switch(index, [lambda *xs, p=p: p.ahead(list(xs))[0] for p in parts], *operands)

    def pull(cts):
        asked = asked_of(cts, out_flags)
        if not any(asked):
            return [None] * len(inputs)
        reached = [
            any(column) for column in zip(*(p.of(asked).reached for p in parts), strict=True)
        ]
        places = [i for i, there in enumerate(reached) if there]

        def way(xs, cts, parts):
            found = pulled(parts, xs, parts.ahead(xs)[1] if parts.residuals else [], asked, cts)
            return [jnp.zeros_like(xs[i]) if found[i] is None else found[i] for i in places]

        ways = [functools.partial(way, parts=p) for p in parts]
        found = iter(lax.switch(index, ways, operands, cts))
        return [None, *(next(found) if there else None for there in reached)]

    return outputs, pull


@recorder("custom_linear_solve")
@at_once
def linear_solve(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A x = b: to b the solution s of Aᵀ s = ct; to A what the walk of −A x gives it, from s."""
    lengths, graphs = equation.params["const_lengths"], equation.params["jaxprs"]
    ends = np.cumsum(list(lengths)).tolist()
    matvec, vecmat, solve, transpose_solve = (
        inputs[end - n : end] for n, end in zip(lengths, ends, strict=True)
    )
    transposed = {"const_lengths": lengths.transpose(), "jaxprs": graphs.transpose()}
    flags, b_flags = active[: lengths.matvec], active[ends[-1] :]
    x = evaluate(equation, inputs)

    def pull(cts):
        filled = [jnp.zeros_like(v) if ct is None else ct for v, ct in zip(x, cts, strict=True)]
        s = equation.primitive.bind(
            *vecmat, *matvec, *transpose_solve, *solve, *filled, **transposed
        )
        product = forward(*open_jaxpr(graphs.matvec), [*matvec, *x], [*flags, *(False for _ in x)])
        to_matrix = through(product)[1]([-v for v in s])[: lengths.matvec]
        between = [None] * (ends[-1] - lengths.matvec)
        return [*to_matrix, *between, *(v if a else None for v, a in zip(s, b_flags, strict=True))]

    return x, pull

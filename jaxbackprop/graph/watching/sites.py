"""The places in a graph that can be watched: every real array that an equation computes from the
function's inputs, in calls, loops and branches too.

Functions with a rule of their own (custom_jvp, custom_vjp) are one operation: their rule may differ
from their body, as relu's does at 0. So is a `while`, whose number of steps is not known.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import DropVar, Literal

from jaxbackprop.graph.dependence import CALLS, dependence, lengths, open_jaxpr
from jaxbackprop.graph.names import MOVES
from jaxbackprop.graph.walk import is_flat, is_real

PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"}
PRODUCTS |= {"scaled_dot", "scaled_matmul"}
REMAT = ("checkpoint", "remat2", "remat")


class Around(NamedTuple):
    """An equation, and the branch of it that is meant: 0 but for a cond."""

    equation: Any
    branch: int = 0


class Site(NamedTuple):
    """One output of an equation, `place[-1]`, and the equations around it, from the outermost.

    steps: the lengths of the scans around it. operands: which of the equation's inputs depend on a
    differentiated input. active: so does the output, smoothly. parameter: the path of the first
    one that the equation reads, or "".
    """

    place: tuple[Around, ...]
    output: int
    steps: tuple[int, ...]
    operands: tuple[bool, ...]
    active: bool
    parameter: str = ""

    @property
    def equation(self) -> Any:
        return self.place[-1].equation

    @property
    def aval(self) -> Any:
        return self.equation.outvars[self.output].aval

    @property
    def in_branch(self) -> bool:
        return any(around.equation.primitive.name == "cond" for around in self.place[:-1])

    @property
    def key(self) -> tuple:
        return (*key_of(self.place), self.output)


def key_of(place: Sequence[Around]) -> tuple[int, ...]:
    """The same graph may stand in several places: it is the way to it that names a site."""
    return tuple(part for around in place for part in (id(around.equation), around.branch))


class Flags(NamedTuple):
    """Of each variable: does it depend on an input at all, and on a differentiated one? And the
    path of the parameter whose own numbers it has, moved at most, or ""."""

    given: list[bool]
    active: list[bool]
    names: list[str]


class Body(NamedTuple):
    """A graph inside an equation, what its inputs are, and how often it runs."""

    graph: Any
    flags: Flags
    steps: tuple[int, ...] = ()


def sites(
    jaxpr: Any,
    flags: Flags,
    constants: frozenset = frozenset(),
    place: tuple[Around, ...] = (),
    steps: tuple[int, ...] = (),
) -> Iterator[Site]:
    """All of them in order of computing; those inside an equation before the equation's own.

    Of the jaxpr's constants those count as given that are named. What depends on none of them and
    on no input is left out: the compiler knows it beforehand, and would fold its statistics.
    """
    given = {v for v, flag in zip(jaxpr.invars, flags.given, strict=True) if flag} | constants
    active = {v for v, flag in zip(jaxpr.invars, flags.active, strict=True) if flag}
    names = dict(zip(jaxpr.invars, flags.names, strict=True))
    for equation in jaxpr.eqns:
        found = Flags(
            [not isinstance(v, Literal) and v in given for v in equation.invars],
            [not isinstance(v, Literal) and v in active for v in equation.invars],
            ["" if isinstance(v, Literal) else names.get(v, "") for v in equation.invars],
        )
        parameter = next(filter(None, found.names), "")
        if equation.primitive.name in MOVES:
            names.update(dict.fromkeys(equation.outvars, found.names[0]))
        smooth = any(found.active) and not is_flat(equation)
        for i, body in enumerate(bodies(equation, found)):
            inner = (*place, Around(equation, i))
            graph, _ = open_jaxpr(body.graph)
            inside = (*steps, *body.steps)
            yield from sites(graph, body.flags, place=inner, steps=inside)
        if not any(found.given):
            continue
        given.update(equation.outvars)
        here = (*place, Around(equation))
        is_call = equation.primitive.name in (
            *CALLS,
            *REMAT,
        )  # its outputs are values of the graph inside
        for k, v in enumerate(equation.outvars):
            if is_real(v.aval):
                if smooth:
                    active.add(v)
                if not (is_call or isinstance(v, DropVar)) and v.aval.size:
                    yield Site(here, k, steps, tuple(found.active), smooth, parameter)


def bodies(equation: Any, flags: Flags) -> list[Body]:
    """The graphs inside an equation that are entered, with what is known of their inputs."""
    enter = ENTERED.get(equation.primitive.name)
    return enter(equation.params, flags) if enter else []


def _call(params: dict, flags: Flags) -> list[Body]:
    return [Body(called(params), flags)]


def called(params: dict) -> Any:
    """The graph of a call."""
    return params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]


def _cond(params: dict, flags: Flags) -> list[Body]:
    inner = Flags(flags.given[1:], flags.active[1:], flags.names[1:])
    return [Body(branch, inner) for branch in params["branches"]]


def _scan(params: dict, flags: Flags) -> list[Body]:
    jaxpr, _ = open_jaxpr(params["jaxpr"])
    n_consts, n_carry = lengths(params)
    given, active = (
        dependence(jaxpr, own, n_consts, n_carry)[0] for own in (flags.given, flags.active)
    )
    # Integers have no gradient, but they can be given.
    given = [a or b for a, b in zip(given, flags.given, strict=True)]
    carried = range(n_consts, n_consts + n_carry)  # is another array after a step
    names = ["" if i in carried else name for i, name in enumerate(flags.names)]
    return [Body(params["jaxpr"], Flags(given, active, names), (params["length"],))]


ENTERED: dict[str, Callable[[dict, Flags], list[Body]]] = {
    **dict.fromkeys((*CALLS, *REMAT), _call),
    "cond": _cond,
    "scan": _scan,
}

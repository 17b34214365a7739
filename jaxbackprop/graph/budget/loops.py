"""Scans in a plan: the loop ahead and the loop back are two operations of the graph around them.

One value goes from one to the other: the *token*, of as many bytes as the chosen option keeps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive

from jaxbackprop.graph.budget.costs import Choices
from jaxbackprop.graph.budget.joint import Joint, flatten
from jaxbackprop.graph.budget.options import Option, loops_in, options, paths
from jaxbackprop.graph.budget.report import step_kept, step_repeated
from jaxbackprop.graph.budget.running import run_ahead, run_back
from jaxbackprop.graph.budget.simulation import plain
from jaxbackprop.graph.dependence import dependence, lengths, open_jaxpr
from jaxbackprop.graph.halves import there_and_back
from jaxbackprop.graph.loop import refuse
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.structure import recorder
from jaxbackprop.graph.walk import evaluate


class Loop:
    """A scan and its options, from what costs least time to what needs least memory."""

    def __init__(self, params: dict, active: Sequence[bool]) -> None:
        self.length, self.reverse = params["length"], params["reverse"]
        self.n_consts, self.n_carry = lengths(params)
        jaxpr, closed = open_jaxpr(params["jaxpr"])
        self.flags, self.out_flags = dependence(jaxpr, active, self.n_consts, self.n_carry)
        self.joint, self.closed = _step(jaxpr, closed, self.flags, self.out_flags)
        self.out_avals = [v.aval for v in jaxpr.outvars]
        self.options = options(self)

    def ahead(self, option: Option, inputs: Sequence[Any]) -> list:
        return run_ahead(self, option, inputs)

    def back(self, option: Option, values: Sequence[Any]) -> list:
        n = len(self.flags)
        token, inputs, cts = values[0], values[1 : n + 1], list(values[n + 1 :])
        return run_back(self, option, token, inputs, cts)

    def kept(self, option: Option, line: Any) -> Iterator:
        """What is kept for the way back: lines and bytes."""
        if option.segment > 1:
            yield line, option.kept
        else:
            yield from step_kept(self.joint, option.ahead.choices, option.values, self.length)

    def repeated(self, option: Option) -> Iterator:
        """What the way back computes again: lines, bytes of a step, how often, nanoseconds."""
        yield from step_repeated(option.back, option.order, self.length)
        if option.segment > 1:
            everything = plain(option.ahead)
            yield from step_repeated(option.ahead, everything, self.length)

    def __repr__(self) -> str:
        return f"Loop({id(self)})"


@recorder("planned_scan")
def planned_scan(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The loop ahead and the loop back, as two operations of the graph around them."""
    try:
        loop = Loop(equation.params, active)
    except UnsupportedPrimitive as error:
        return evaluate(equation, inputs), refuse(error)
    *outputs, token = AHEAD.bind(*inputs, loop=loop, outs=tuple(v.aval for v in equation.outvars))

    def pull(cts):
        cts = [
            jnp.zeros_like(out) if ct is None else ct
            for ct, out, flag in zip(cts, outputs, loop.out_flags, strict=True)
            if flag
        ]
        wanted = [v.aval for v, flag in zip(equation.invars, loop.flags, strict=True) if flag]
        found = iter(BACK.bind(token, *inputs, *cts, loop=loop, outs=tuple(wanted)))
        found = [next(found) if flag else None for flag in loop.flags]
        return [g if a else None for g, a in zip(found, active, strict=True)]

    return outputs, pull


TOKEN = jax.typeof(np.int32(0))
AHEAD, BACK = Primitive("scan_ahead"), Primitive("scan_back")
AHEAD.multiple_results = BACK.multiple_results = True
AHEAD.def_abstract_eval(lambda *avals, loop, outs: [*outs, TOKEN])
BACK.def_abstract_eval(lambda *avals, loop, outs: list(outs))


def _step(jaxpr: Any, closed: Sequence, flags: list[bool], out_flags: list[bool]) -> tuple:
    """The joint graph of a step: its inputs are constants of the text, the step's inputs, and the
    cotangents of the outputs that have one; its outputs those of the step and the gradients."""
    cts = [v.aval for v, flag in zip(jaxpr.outvars, out_flags, strict=True) if flag]
    whole, consts = open_jaxpr(there_and_back(jaxpr, closed, flags, out_flags))
    return flatten(whole, len(cts)), list(consts)


def choices_of(joint: Joint, most: int) -> list[Choices]:
    """An option for each loop of a graph, with less and less memory."""
    return paths(loops_in(joint), most)
